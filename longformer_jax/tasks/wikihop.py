"""WikiHop: which of some candidates answers a question about many documents (Welbl et al. 2018; paper, section 6.1)."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from longformer_jax.data.buckets import bucket_lengths
from longformer_jax.errors import InputError
from longformer_jax.files import replacing
from longformer_jax.integers import check_integer
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.models.checks import check_bool
from longformer_jax.models.heads import HeadOutput
from longformer_jax.tasks.base import Counts, Example, Field, Task, as_line, check_diverged, save_encoder_and_head
from longformer_jax.tasks.metrics import accuracy
from longformer_jax.tasks.records import read_list, text_field, text_list

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

_FILES = {"train": "train.json", "validation": "dev.json"}


class CandidateScores(nn.Module):
    """A linear score, without a bias, on the token before each candidate, the mean over all pieces of the documents."""

    config: LongformerConfig

    @nn.compact
    def __call__(
        self, input_ids: jax.Array, candidates: jax.Array, global_attention_mask: jax.Array | None, **kwargs: Any
    ) -> HeadOutput:
        """Scores candidates.

        Args:
          input_ids: integers [B, P, T], P pieces that begin with the same question and candidates; a piece of nothing
            but <pad> does not count.
          candidates: int32 [B, C], the position of each candidate's mark in a piece; negative where there is none.
          global_attention_mask: booleans [B, P, T], or None.
          **kwargs: of `Longformer`.

        Returns:
          logits [B, C], -inf where there is no candidate. The encoder's output has B * P rows.
        """
        cfg = self.config
        B, P, T = input_ids.shape
        mask = input_ids != cfg.pad_token_id
        encoder = Longformer(cfg, add_pooling_layer=False, name="longformer")
        global_mask = None if global_attention_mask is None else global_attention_mask.reshape(B * P, T)
        output = encoder(input_ids.reshape(B * P, T), mask.reshape(B * P, T), global_mask, **kwargs)
        x = output.last_hidden_state.reshape(B, P, T, cfg.hidden_size)
        marks = jax.vmap(lambda pieces, places: pieces[:, places])(x, jnp.maximum(candidates, 0))  # [B, P, C, E]
        init = nn.initializers.normal(cfg.initializer_range)
        score = nn.Dense(1, use_bias=False, dtype=jnp.float32, kernel_init=init, name="score")
        scores = score(marks.reshape(-1, cfg.hidden_size)).reshape(marks.shape[:3])
        counts = mask.any(-1).astype(jnp.float32)[:, :, None]
        logits = (scores * counts).sum(1) / jnp.maximum(counts.sum(1), 1)
        return HeadOutput(jnp.where(candidates >= 0, logits, -jnp.inf), output)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WikiHop(Task):
    """`data.path` is the folder "wikihop" of qangaroo_v1.1.zip, with train.json and dev.json; there is no public test.

    An example is {"id", "query", "candidates", "supports", "answer"}, its answer None if unknown. A row is

        <s> [q] query [/q] [ent] candidate [/ent] … </s> document </s> document …

    in as many pieces of the phase's sequence_length as the documents take, each of which begins with the query and the
    candidates. These have global attention, and the scores of the pieces are averaged.

    Attributes:
      max_pieces: of a row; what documents are left then is not read.
      max_candidates: of a row; an example that has more, or longer ones than a piece has room for, loses the last.
      max_global_tokens: for how many tokens of the query and the candidates there is room; what comes behind them has
        no global attention.
      global_attention: False is the paper's ablation without any.
    """

    kind: str = "wikihop"
    max_pieces: int = 8
    max_candidates: int = 100
    max_global_tokens: int = 512
    global_attention: bool = True

    unit: ClassVar[str] = "questions"
    splits: ClassVar[Sequence[str]] = ("train", "validation")
    kept: ClassVar[Sequence[str]] = ("id", "candidates", "answer")
    targets: ClassVar[Sequence[str]] = ("answer",)
    added_tokens: ClassVar[Sequence[str]] = ("[q]", "[/q]", "[ent]", "[/ent]")

    def __post_init__(self) -> None:
        for field in ("max_pieces", "max_candidates", "max_global_tokens"):
            check_integer(field, getattr(self, field))
        check_bool("global_attention", self.global_attention)

    @property
    def selection(self) -> str:
        return "accuracy"

    # Reading.

    def files(self, path: Path, split: str) -> list[Path]:
        """The split's file."""
        self.check_split(split)
        for folder in (path, path / "wikihop", path / "qangaroo_v1.1" / "wikihop"):
            if (folder / _FILES[split]).is_file():
                return [folder / _FILES[split]]
        raise InputError(
            f"data.path is {str(path)!r}, which has no {_FILES[split]}; expected the folder wikihop of qangaroo_v1.1"
        )

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The questions of a split."""
        (file,) = self.files(path, split)
        for example in self.read_own(file):
            if example["answer"] is None:
                raise InputError(f"question {example['id']!r} of {str(file)!r} has no answer; expected a candidate")
            yield example

    def read_own(self, path: Path) -> Iterator[Example]:
        """A file of WikiHop's format, in which an answer may be missing."""
        for place, record in read_list(path):
            candidates = text_list(place, record, "candidates")
            answer = text_field(place, record, "answer") if record.get("answer") is not None else None
            if answer is not None and answer not in candidates:
                raise InputError(f"{place}: answer is {answer!r}; expected one of its {len(candidates)} candidates")
            yield {
                "id": text_field(place, record, "id"),
                "query": text_field(place, record, "query"),
                "candidates": candidates,
                "supports": text_list(place, record, "supports"),
                "answer": answer,
            }

    def from_text(self, text: str, name: str) -> Example:
        """No example, as candidates are missing."""
        raise InputError(
            f"{name} has no candidates, which task {self.kind!r} needs; expected a JSON file in WikiHop's format"
        )

    def from_question(self, question: str, text: str, name: str) -> Example:
        """No example either."""
        return self.from_text(text, name)

    def is_labelled(self, example: Example) -> bool:
        """Whether the answer is known."""
        return example["answer"] is not None

    # Features.

    def texts(self, example: Example) -> list[str]:
        """The query, the candidates and the documents, as words in a text."""
        query = example["query"].replace("_", " ")  # which parts the words of a relation
        return [f" {text.strip()}" for text in (query, *example["candidates"], *example["supports"])]

    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """One row, of pieces of `packer.sequence_length` tokens, the last of which may be shorter."""
        query, *others = ([*encoding.ids] for encoding in encodings)
        names, documents = others[: len(example["candidates"])], others[len(example["candidates"]) :]
        begin, end, mark, end_mark = self.added_ids(packer)
        room = packer.sequence_length - 3  # for </s>, a token of a document and </s>
        if 3 + len(query) > room // 2:
            counts[f"query cut to half of {packer.sequence_length:,} tokens"] += 1
            query = query[: max(room // 2 - 3, 0)]
        prefix, places = [packer.bos_token_id, begin, *query, end], []
        for name in names[: self.max_candidates]:
            if len(prefix) + len(name) + 2 > room:
                break
            places.append(len(prefix))
            prefix += [mark, *name, end_mark]
        if not places:
            raise InputError(
                f"sequence_length is {packer.sequence_length:,}; expected more, as a candidate of question "
                f"{example['id']!r} has {len(names[0]):,} tokens"
            )
        if len(places) < len(names):
            counts["with candidates for which there is no room"] += 1
        if self.global_attention and len(prefix) > self.max_global_tokens:
            counts[f"with more than {self.max_global_tokens:,} tokens of query and candidates"] += 1
        context = [token for document in documents for token in (packer.sep_token_id, *document)]
        context.append(packer.sep_token_id)
        size = packer.sequence_length - len(prefix)
        pieces = [prefix + context[start : start + size] for start in range(0, len(context), size)]
        if len(pieces) > self.max_pieces:
            counts[f"cut after {self.max_pieces} pieces of {packer.sequence_length:,} tokens"] += 1
        ids = [token for piece in pieces[: self.max_pieces] for token in piece]
        row = {"input_ids": ids, "prefix": [len(prefix)], "candidates": places}
        if example["answer"] is not None:
            number = example["candidates"].index(example["answer"])
            row["answer"] = [number if number < len(places) else -1]
        yield row

    def fields(self) -> Mapping[str, Field]:
        """`prefix`, its tokens; `candidates`, their marks; `answer`, its number, or -1 where it has no room."""
        candidates = Field(length=self.max_candidates, fill=-1)
        return {"input_ids": Field(), "prefix": Field(length=1), "candidates": candidates, "answer": Field(length=1)}

    def lengths(self, sequence_length: int) -> tuple[int, ...]:
        """Those of one piece, and the whole pieces of several: 2, 3, 4, 6, 8, 12, … of them."""
        pieces = {2**i * k // 2 for i in range(1, self.max_pieces.bit_length()) for k in (2, 3)} | {self.max_pieces}
        several = sorted(count * sequence_length for count in pieces if 1 < count <= self.max_pieces)
        return *bucket_lengths(sequence_length), *several

    # The model.

    def head(self, model: LongformerConfig) -> nn.Module:
        """The scores of candidates."""
        return CandidateScores(model)

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """Rows as pieces."""
        ids = batch["input_ids"].astype(jnp.int32)
        ids = ids.reshape(ids.shape[0], -1, min(sequence_length, ids.shape[1]))
        inputs = {"input_ids": ids, "candidates": batch["candidates"], "global_attention_mask": None}
        if self.global_attention:
            first = jnp.minimum(batch["prefix"], self.max_global_tokens)[:, :, None]  # [B, 1, 1]
            is_global = (jnp.arange(ids.shape[-1])[None, None] < first) & (ids != model.pad_token_id)
            inputs |= {"global_attention_mask": is_global, "max_global_tokens": self.max_global_tokens}
        return inputs

    def loss(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Cross entropy over the candidates, in nats; 0 where the answer had no room."""
        answer = batch["answer"][:, 0]
        logits = jnp.where(batch["candidates"] >= 0, output.logits, jnp.finfo(jnp.float32).min)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(answer, 0))
        return jnp.where(answer >= 0, nats, 0.0)

    def outputs(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities `[B, C]`."""
        return jax.nn.softmax(output.logits)

    def save(self, directory: Path, model: LongformerConfig, params: Any) -> None:
        """transformers has no such head."""
        save_encoder_and_head(directory, model, params)

    # Answers.

    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """{"id", "answer", "score": its probability, "scores": of each candidate that was read}."""
        (row,), (probabilities,) = rows, outputs
        count = len(row["candidates"])
        check_diverged(np.isnan(probabilities[:count]).any(), f"question {example['id']!r}")
        scores = {
            name: round(float(p), 6)
            for name, p in zip(example["candidates"][:count], probabilities[:count], strict=True)
        }
        answer = example["candidates"][int(np.argmax(probabilities[:count]))]
        return {"id": example["id"], "answer": answer, "score": scores[answer], "scores": scores}

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """`accuracy`."""
        predicted, expected = ([item["answer"] for item in items] for items in (predictions, examples))
        return {"accuracy": accuracy(predicted, expected)}

    def describe(self, prediction: Any) -> str:
        """The answer and its probability."""
        return as_line(prediction["answer"], f"{prediction['score']:.4f}")

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """The official file: a JSON object of answers by the questions' ids."""
        answers = {prediction["id"]: prediction["answer"] for prediction in predictions}
        with replacing(path) as partial:
            partial.write_text(json.dumps(answers, ensure_ascii=False), encoding="utf-8")
