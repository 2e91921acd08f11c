"""HotpotQA, distractor setting: an answer, and the sentences of two paragraphs that it follows from (Yang et al. 2018;
Longformer, section 6.1 and appendix)."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from longformer_jax.errors import InputError
from longformer_jax.files import read_json, replacing, user_path
from longformer_jax.integers import as_number, check_integer, check_number
from longformer_jax.models import Longformer, LongformerConfig
from longformer_jax.tasks.answers import hotpotqa_metrics, normalize_hotpotqa
from longformer_jax.tasks.base import Counts, Example, Field, Marked, Task, as_line, save_encoder_and_head
from longformer_jax.tasks.extraction import any_of_loss, best_pair, is_span, sentence_spans
from longformer_jax.tasks.hotpotqa_rows import Row, marked_text, placed_answer, spaced
from longformer_jax.tasks.records import read_list, shown, text_field

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

_FILES = {"train": "hotpot_train_v1.1.json", "validation": "hotpot_dev_distractor_v1.json"}
# The kinds of answers; all but the first are the answer.
_TYPES = ("span", "yes", "no")
# The evidence comes from so many paragraphs.
_PARAGRAPHS = 2
_BLANK_LINE = re.compile(r"\r?\n[^\S\n]*\n")
# What says where an answer stands, None for one that stands nowhere.
_PLACE = ("sentence", "place", "start", "end")


@flax.struct.dataclass
class Evidence:
    """What a `FindEvidence` computes, float32.

    Attributes:
      span: [B, T, 2], logits of tokens as the first and as the last one of the answer.
      answer_type: [B, 3], logits of a span, yes and no.
      sentences: [B, S], logits of sentences as supporting facts.
      paragraphs: [B, P], logits of paragraphs as those of supporting facts.
    """

    span: jax.Array
    answer_type: jax.Array
    sentences: jax.Array
    paragraphs: jax.Array


class FindEvidence(nn.Module):
    """Four heads: for spans, for the kind of answer on <s>, and of two layers on the marks of sentences and titles."""

    config: LongformerConfig

    @nn.compact
    def __call__(self, input_ids: jax.Array, sentences: jax.Array, titles: jax.Array, *args: Any, **kwargs: Any):
        """Scores tokens, sentences and paragraphs.

        Args:
          input_ids: integers [B, T].
          sentences, titles: int32 [B, S] and [B, P], the positions of their marks; what is negative scores nothing.
          *args, **kwargs: of `Longformer`.
        """
        cfg = self.config
        x = Longformer(cfg, add_pooling_layer=False, name="longformer")(input_ids, *args, **kwargs).last_hidden_state
        dropout = nn.Dropout(cfg.hidden_dropout_prob, deterministic=kwargs.get("deterministic", True))

        def dense(features: int, name: str, rows: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
            init = nn.initializers.normal(cfg.initializer_range)
            layer = nn.Dense(features, dtype=dtype, kernel_init=init, name=name)
            return layer(rows.reshape(-1, cfg.hidden_size)).reshape(*rows.shape[:-1], features)

        def marked(places: jax.Array, name: str) -> jax.Array:
            rows = jax.vmap(lambda x, places: x[places])(x, jnp.maximum(places, 0))
            hidden = nn.gelu(dense(cfg.hidden_size, f"{name}_dense", dropout(rows), cfg.dtype), approximate=False)
            return dense(1, f"{name}_score", dropout(hidden))[..., 0]

        return Evidence(
            span=dense(2, "span", x),
            answer_type=dense(len(_TYPES), "answer_type", dropout(x[:, 0])),
            sentences=marked(sentences, "sentence"),
            paragraphs=marked(titles, "paragraph"),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HotpotQA(Task):
    """`data.path` is the folder with hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json; the test is not public.

    An example is {"id", "question", "titles", "sentences": of each title, "answer", "facts": [[title, number], …]}, the
    last two None where they are unknown; "untitled" says that the titles are only made up. One of plain text also has
    the "text", and for each paragraph the "places" of its sentences in it, [start, end] in characters. A row is

        <s> [q] question [/q] <t> title </t> sentence [s] sentence [s] … <t> title </t> … </s>

    in which <s>, the question and the marks before titles and behind sentences are global.

    The paper has two stages. The second one reads only paragraphs that the first one, on all of them, gives a score of
    more than `threshold`, and at most `most_paragraphs`, the best: `stage_one` names the files of predictions that the
    first one's model has written for each split.

    The loss is the sum of four, by `loss_weights`: of the answer's first and last token (all its places in supporting
    sentences are right), of the kind of answer, and the binary cross entropies of sentences and of paragraphs.

    Attributes:
      stage_one: files that `eval.py --predictions` has written with the first stage's model; none in that stage.
      threshold, most_paragraphs: of the second stage.
      loss_weights: of span, kind of answer, sentences and paragraphs.
      max_question_tokens: what is longer is cut.
      max_paragraphs, max_sentences: for how many of them a row has room; those behind are left out.
      max_answer_tokens, candidates: as of TriviaQA.
    """

    kind: str = "hotpotqa"
    stage_one: tuple[str, ...] = ()
    threshold: float = -3.0
    most_paragraphs: int = 5
    loss_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    max_question_tokens: int = 96
    max_paragraphs: int = 10
    max_sentences: int = 128
    max_answer_tokens: int = 30
    candidates: int = 20

    unit: ClassVar[str] = "questions"
    splits: ClassVar[Sequence[str]] = ("train", "validation")
    kept: ClassVar[Sequence[str]] = ("id", "titles", "answer", "facts", "places")
    targets: ClassVar[Sequence[str]] = ("firsts", "lasts", "answer_type", "is_fact", "is_source")
    added_tokens: ClassVar[Sequence[str]] = ("[q]", "[/q]", "<t>", "</t>", "[s]")

    def __post_init__(self) -> None:
        for field in ("max_question_tokens", "max_paragraphs", "max_sentences", "max_answer_tokens", "candidates"):
            check_integer(field, getattr(self, field))
        check_integer("most_paragraphs", self.most_paragraphs, _PARAGRAPHS)
        check_number("threshold", self.threshold, "a number")
        if not isinstance(self.stage_one, list | tuple) or not all(isinstance(name, str) for name in self.stage_one):
            raise InputError(f"stage_one is {self.stage_one!r}; expected names of files")
        weights = [as_number(x) for x in self.loss_weights] if isinstance(self.loss_weights, list | tuple) else []
        if len(weights) != 4 or any(weight is None or weight < 0 for weight in weights):
            raise InputError(f"loss_weights is {self.loss_weights!r}; expected four numbers, none less than 0")

    @property
    def selection(self) -> str:
        return "joint_f1"

    # Reading.

    def files(self, path: Path, split: str) -> list[Path]:
        """The split's file, and those of the first stage."""
        self.check_split(split)
        file = path / _FILES[split]
        if not file.is_file():
            raise InputError(f"data.path is {str(path)!r}, which has no {file.name}; expected HotpotQA's files")
        return [file, *self._stage_one_files]

    @property
    def _stage_one_files(self) -> list[Path]:
        files = [user_path("task.stage_one", name) for name in self.stage_one]
        for file in files:
            if not file.is_file():
                raise InputError(f"task.stage_one names {str(file)!r}, which is no file; expected one of predictions")
        return files

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The questions of a split."""
        file, *_ = self.files(path, split)
        for example in self.read_own(file):
            if example["answer"] is None:
                raise InputError(f"question {example['id']!r} of {file.name} has no answer; expected one")
            yield example

    def read_own(self, path: Path) -> Iterator[Example]:
        """A file of HotpotQA's format, in which answer and supporting_facts may both be missing."""
        scores = self._stage_one_scores()
        for place, record in read_list(path):
            context = record.get("context")
            if not isinstance(context, list) or not context or not all(map(_is_paragraph, context)):
                raise InputError(f"{place}: context is {shown(context)}; expected a list of [title, [sentence, …]]")
            answer = text_field(place, record, "answer") if record.get("answer") is not None else None
            facts = record.get("supporting_facts")
            if answer is not None and not (isinstance(facts, list) and all(map(_is_fact, facts))):
                raise InputError(f"{place}: supporting_facts is {shown(facts)}; expected a list of [title, number]")
            example = {
                "id": text_field(place, record, "_id"),
                "question": text_field(place, record, "question"),
                "titles": [title for title, _ in context],
                "sentences": [sentences for _, sentences in context],
                "answer": answer,
                "facts": None if answer is None else facts,
                "untitled": False,
            }
            yield example if scores is None else self._second_stage(example, scores)

    def _stage_one_scores(self) -> dict[str, list[float | None]] | None:
        """Of each question's paragraphs; None in the first stage."""
        if not self.stage_one:
            return None
        scores: dict[str, list[float | None]] = {}
        for file in self._stage_one_files:
            found = read_json(file)
            found = found.get("paragraphs") if isinstance(found, dict) else None
            if not isinstance(found, dict):
                raise InputError(f"{str(file)!r} has no scores of paragraphs; expected predictions of the first stage")
            for name, values in found.items():
                if not isinstance(values, list) or any(x is not None and as_number(x) is None for x in values):
                    raise InputError(
                        f"{str(file)!r} has {shown(values)} as the paragraphs' scores of question {name!r}; expected a "
                        "list of numbers, null for what was not read"
                    )
            scores |= found
        return scores

    def _second_stage(self, example: Example, scores: Mapping[str, list[float | None]]) -> Example:
        """With the paragraphs that the first stage has kept, at least two."""
        found = scores.get(example["id"])
        if found is None or len(found) != len(example["titles"]):
            raise InputError(
                f"question {example['id']!r} has {len(example['titles'])} paragraphs and no scores of the first stage "
                "for each; expected them in a file of task.stage_one"
            )
        numbers = [-np.inf if score is None else score for score in found]
        best = sorted(range(len(numbers)), key=lambda i: -numbers[i])
        count = sum(number > self.threshold for number in numbers)
        kept = sorted(best[: max(min(count, self.most_paragraphs), _PARAGRAPHS)])
        return {**example, **{field: [example[field][i] for i in kept] for field in ("titles", "sentences")}}

    def from_text(self, text: str, name: str) -> Example:
        """No example, as a question is missing."""
        raise InputError(f"{name} has no question, which task {self.kind!r} needs; expected one beside the text")

    def from_question(self, question: str, text: str, name: str) -> Example:
        """A question about a text, whose paragraphs have blank lines between them."""
        if not question.strip():
            raise InputError(f"{name}: question is empty; expected a question")
        places, begin = [], 0
        for close, next_begin in [*(found.span() for found in _BLANK_LINE.finditer(text)), (len(text), len(text))]:
            if spans := sentence_spans(text[begin:close], wrapped=True):
                places.append([[begin + start, begin + end] for start, end in spans])
            begin = next_begin
        if not places:
            raise InputError(f"{name}: text is empty; expected a document")
        return {
            "id": name,
            "question": question,
            "titles": [f"paragraph {number}" for number in range(1, len(places) + 1)],
            "sentences": [[" ".join(text[start:end].split("\n")) for start, end in spans] for spans in places],
            "answer": None,
            "facts": None,
            "untitled": True,
            "text": text,
            "places": places,
        }

    def is_labelled(self, example: Example) -> bool:
        """Whether the answer is known."""
        return example["answer"] is not None

    # Features.

    def texts(self, example: Example) -> list[str]:
        """The question, and of each paragraph the title and the sentences."""
        paragraphs = zip(example["titles"], example["sentences"], strict=True)
        parts = [example["question"], *(text for title, sentences in paragraphs for text in (title, *sentences))]
        return [spaced(text) for text in parts]

    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """One row, and what is needed to find the text of a span, and the sentences, again."""
        least = self.max_question_tokens + 8
        if packer.sequence_length < least:
            raise InputError(
                f"sequence_length is {packer.sequence_length:,}; expected at least {least:,}, room for a question of "
                f"{self.max_question_tokens:,} tokens and the beginning of a paragraph"
            )
        happened = set()
        question = encodings[0].ids
        if len(question) > self.max_question_tokens:
            happened.add(f"with a question cut at {self.max_question_tokens:,} tokens")
        row = Row(packer, self.added_ids(packer), question[: self.max_question_tokens])
        parts = iter(encodings[1:])
        for number, (title, sentences) in enumerate(zip(example["titles"], example["sentences"], strict=True)):
            name, *others = (next(parts) for _ in range(1 + len(sentences)))
            is_room = len(row.titles) < self.max_paragraphs and row.add_title(
                number, title, name, not example["untitled"]
            )
            for index, (sentence, encoding) in enumerate(zip(sentences, others, strict=True)):
                is_room = is_room and len(row.sentences) < self.max_sentences
                is_room = is_room and row.add_sentence(number, index, sentence, encoding)
            if not is_room:
                happened.add("with sentences for which there is no room")
        arrays = row.finished()
        if example["answer"] is not None:
            arrays |= self._targets(example, row, happened)
        counts.update(happened)
        yield arrays

    def _targets(self, example: Example, row: Row, happened: set[str]) -> dict[str, Any]:
        facts = {tuple(fact) for fact in example["facts"]}
        names = [(example["titles"][paragraph], number) for paragraph, number in row.facts]
        is_fact = [name in facts for name in names]
        sources = {title for title, _ in facts}
        if sum(is_fact) < len(facts):
            happened.add("with supporting facts that are not in what is read")
        answer = normalize_hotpotqa(example["answer"])  # as the scorer sees it, "Yes" is yes
        answer_type = _TYPES.index(answer) if answer in _TYPES[1:] else 0
        spans = [] if answer_type else row.find(example["answer"], is_fact)
        if not answer_type and not spans:
            happened.add("with an answer that is not in what is read")
        return {
            "firsts": sorted({first for first, _ in spans}),
            "lasts": sorted({last for _, last in spans}),
            "answer_type": [answer_type],
            "is_fact": is_fact,
            "is_source": [example["titles"][paragraph] in sources for paragraph in row.paragraphs],
        }

    def fields(self) -> Mapping[str, Field]:
        """What a row has beside its tokens.

        `question`, the tokens before the first title; `titles` and `sentences`, the positions of their marks; `part`,
        for tokens of a text the number of the title or sentence, in which a span stays, else -1; targets of these. For
        decoding: `paragraphs`, of the titles, and `facts`, of the sentences, their numbers in the example; `text` as
        UTF-8, and the characters of tokens in it, `begins` and `ends`.
        """
        sentences, titles = ({"length": count, "fill": -1} for count in (self.max_sentences, self.max_paragraphs))
        return {
            "input_ids": Field(),
            "question": Field(length=1),
            "titles": Field(**titles),
            "sentences": Field(**sentences),
            "part": Field(fill=-1),
            "firsts": Field(fill=-1),
            "lasts": Field(fill=-1),
            "answer_type": Field(length=1),
            "is_fact": Field(length=self.max_sentences),
            "is_source": Field(length=self.max_paragraphs),
            "paragraphs": Field(length=self.max_paragraphs, for_model=False),
            "facts": Field(for_model=False),
            "begins": Field(for_model=False),
            "ends": Field(for_model=False),
            "text": Field("uint8", for_model=False),
        }

    # The model.

    def head(self, model: LongformerConfig) -> nn.Module:
        """The four heads."""
        return FindEvidence(model)

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """With the question and the marks as global tokens."""
        B, T = batch["input_ids"].shape
        mask = jnp.arange(T)[None] < batch["question"]
        rows = jnp.arange(B)[:, None]
        for places in (batch["titles"], batch["sentences"]):
            mask = mask.at[rows, jnp.where(places < 0, T, places)].set(True, mode="drop")
        room = 3 + self.max_question_tokens + self.max_paragraphs + self.max_sentences
        marks = {name: batch[name] for name in ("titles", "sentences")}
        masks = {"global_attention_mask": mask, "max_global_tokens": room}
        return super().inputs(batch, model, sequence_length) | marks | masks

    def loss(self, output: Evidence, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The weighted sum of the four, in nats; each is 0 for a row that has none of what it is of."""
        valid = (batch["part"] >= 0) | (jnp.arange(batch["part"].shape[1]) == 0)[None]
        spans = [any_of_loss(output.span[..., i], batch[name], valid) for i, name in enumerate(("firsts", "lasts"))]
        kind = optax.softmax_cross_entropy_with_integer_labels(output.answer_type, batch["answer_type"][:, 0])
        marks = (("sentences", "is_fact"), ("titles", "is_source"))
        logits = output.sentences, output.paragraphs
        evidence = []
        for (places, target), x in zip(marks, logits, strict=True):
            present = (batch[places] >= 0).astype(jnp.float32)
            nats = optax.sigmoid_binary_cross_entropy(x, batch[target].astype(jnp.float32)) * present
            evidence.append(nats.sum(-1) / jnp.maximum(present.sum(-1), 1))
        parts = jnp.stack([(spans[0] + spans[1]) / 2, kind, *evidence])  # [4, B]
        return jnp.asarray(self.loss_weights, jnp.float32) @ parts

    def outputs(self, output: Evidence, batch: Mapping[str, jax.Array]) -> Any:
        """The best span, and the scores of kinds, sentences and paragraphs."""
        first, last, score = best_pair(
            output.span,
            batch["part"] >= 0,
            candidates=self.candidates,
            longest=self.max_answer_tokens,
            part=batch["part"],
        )
        scores = {"sentences": output.sentences, "paragraphs": output.paragraphs}
        return {"first": first, "last": last, "score": score, "answer_type": output.answer_type, **scores}

    def save(self, directory: Path, model: LongformerConfig, params: Any) -> None:
        """transformers has no such heads."""
        save_encoder_and_head(directory, model, params)

    # Answers.

    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """The answer, and supporting facts from exactly two paragraphs, those of the highest scores.

        Of each of the two these are the sentences of a score above 0, one at least. Paragraphs without sentences do not
        count.

        Returns:
          {"id", "answer", "score": the logit of its kind or of the span, "sentence": in which it stands, "place": the
          [title, number] of that, the number None for a title, "start" and "end": its characters in the text, or of a
          file of HotpotQA's format in the sentence or title; "facts": [[title, number], …], "support": the sentences,
          "paragraphs": the score of each, None where there was no room for it}. Of yes and no, and of an answer of "",
          which is given where no candidates make a span, what says where it stands is None.
        """
        (row,), (output,) = rows, outputs
        kind = _TYPES[int(np.argmax(output["answer_type"]))]
        answer: dict[str, Any] = {"answer": kind, "score": round(float(np.max(output["answer_type"])), 4)}
        if kind == "span" and is_span(output["score"], example["id"]):
            answer = placed_answer(example, row, int(output["first"]), int(output["last"]))
            answer["score"] = round(float(output["score"]), 4)
        elif kind == "span":
            answer = {"answer": "", "score": None}
        text = row["text"].tobytes().decode()
        scores: list[float | None] = [None] * len(example["titles"])
        for paragraph, value in zip(row["paragraphs"], output["paragraphs"], strict=False):
            scores[paragraph] = round(float(value), 6)
        facts = row["facts"].reshape(-1, 2).tolist()
        of_paragraph: dict[int, list[tuple[float, int, int]]] = {}
        for place, value, (paragraph, number) in zip(row["sentences"], output["sentences"], facts, strict=False):
            of_paragraph.setdefault(paragraph, []).append((float(value), number, int(place)))
        ranked = sorted(zip(output["paragraphs"], row["paragraphs"], strict=False), key=lambda pair: -float(pair[0]))
        best = [int(paragraph) for _, paragraph in ranked if int(paragraph) in of_paragraph][:_PARAGRAPHS]
        support = []
        for paragraph in sorted(best):
            found = of_paragraph[paragraph]
            kept = [one for one in found if one[0] > 0] or [max(found)]
            support += [(example["titles"][paragraph], number, place) for _, number, place in kept]
        return {
            "id": example["id"],
            **dict.fromkeys(_PLACE),
            **answer,
            "facts": [[title, number] for title, number, _ in support],
            "support": [text[row["begins"][place] : row["ends"][place]].strip() for _, _, place in support],
            "paragraphs": scores,
        }

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """The official twelve metrics: em, f1, prec and recall of answers, facts (sp_) and both (joint_)."""
        truths = [{"_id": e["id"], "answer": e["answer"], "supporting_facts": e["facts"]} for e in examples]
        return hotpotqa_metrics(_official(predictions), truths)

    def describe(self, prediction: Any) -> str:
        """The answer, its score, the sentence that it stands in, if any, and the supporting sentences."""
        answer, score = (prediction[name] for name in ("answer", "score"))
        shown = ["no answer"] if score is None else [answer, f"{score:.4f}"]
        return as_line(*shown, prediction["sentence"] or "", " | ".join(prediction["support"]))

    def marked(self, example: Example, prediction: Any) -> Marked:
        """All paragraphs, or the text as it was written, with the answer and the supporting sentences.

        Paragraphs of which nothing was read are marked as such.
        """
        text, spans = marked_text(example, prediction)
        return Marked(example["question"], self.describe(prediction), example["id"], text, spans)

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """The official format, {"answer": {id: …}, "sp": {id: …}}, and "paragraphs", which the second stage needs."""
        predictions = list(predictions)
        paragraphs = {prediction["id"]: prediction["paragraphs"] for prediction in predictions}
        with replacing(path) as partial:
            content = _official(predictions) | {"paragraphs": paragraphs}
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _is_paragraph(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], list)
        and all(isinstance(sentence, str) for sentence in value[1])
    )


def _is_fact(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int


def _official(predictions: Iterable[Any]) -> dict[str, Any]:
    predictions = list(predictions)
    return {
        "answer": {prediction["id"]: prediction["answer"] for prediction in predictions},
        "sp": {prediction["id"]: prediction["facts"] for prediction in predictions},
    }
