"""TriviaQA: questions that a span of a long document answers (Joshi et al. 2017; paper, section 6.1)."""

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.files import read_file, replacing
from longformer_jax.integers import check_integer
from longformer_jax.models import ForQuestionAnswering, LongformerConfig
from longformer_jax.tasks.answers import find_answers, triviaqa_score
from longformer_jax.tasks.base import Counts, Example, Field, Marked, Task, as_line
from longformer_jax.tasks.extraction import any_of_loss, best_pair, is_span, sentence_around, token_spans
from longformer_jax.tasks.records import kind_of, opened_archive, read_list, read_records, shown, text_field, text_list

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

DOMAINS = ("wikipedia", "web")
# Which of the official files is which split, DOMAIN being the domain; the public test has no answers.
_FILES = {
    "train": "DOMAIN-train.json",
    "validation": "DOMAIN-dev.json",
    "test": "DOMAIN-test-without-answers.json",
    "verified": "verified-DOMAIN-dev.json",
}
# What a prediction has beside its id and its answer, None without an answer.
_UNANSWERED = ("score", "document", "start", "end", "sentence", "characters")
# Where a question lists its documents, and the folder of evidence that has them.
_PAGES = {"EntityPages": "wikipedia", "SearchResults": "web"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TriviaQA(Task):
    """`data.path` is triviaqa-rc.tar.gz, or the folder with qa/ and evidence/ that it unpacks to, which is faster.

    An example is {"id", "question", "names", "texts", "answers"}, one for each question about Wikipedia, and one for
    each question and document of the web, as the official scorer counts them; "answers" are all that are right, None
    where they are unknown. A row is `<s> question </s> document </s>`, one for each document, cut where it has more
    tokens than a row. `<s>` and the question are global. All places of all answers in what is left of the document are
    right; the loss is minus the log-probability of any of their first tokens, and of any of their last ones, the mean
    of both, over all tokens of the row. It is 0 for a document in which no answer is found.

    The split "verified" is the questions of "validation" whose answers people have seen in the documents.

    Attributes:
      domain: which documents, "wikipedia" or "web".
      max_question_tokens: what is longer is cut; also for how many global tokens beside <s> there is room.
      max_answer_tokens: the most tokens of an answer that is given.
      candidates: of the first and of the last token of an answer, among which the best span is looked for.
    """

    kind: str = "triviaqa"
    domain: str = "wikipedia"
    max_question_tokens: int = 55
    max_answer_tokens: int = 30
    candidates: int = 20

    unit: ClassVar[str] = "questions"
    splits: ClassVar[Sequence[str]] = (*_FILES,)
    default_split: ClassVar[str] = "validation"  # the test is distributed without answers
    kept: ClassVar[Sequence[str]] = ("id", "names", "answers")
    targets: ClassVar[Sequence[str]] = ("firsts", "lasts")

    @property
    def selection(self) -> str:
        return "f1"

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise InputError(f"domain is {self.domain!r}; expected {' or '.join(DOMAINS)}")
        for field in ("max_question_tokens", "max_answer_tokens", "candidates"):
            check_integer(field, getattr(self, field))

    # Reading.

    def files(self, path: Path, split: str) -> list[Path]:
        """The archive; or the split's file and the folders of evidence."""
        self.check_split(split)
        return [path] if path.is_file() else self._find(path, split, path)

    def _find(self, folder: Path, split: str, path: Path) -> list[Path]:
        """What a split needs of a folder, which is `path` or has been unpacked from it."""
        name = _FILES[split].replace("DOMAIN", self.domain)
        root = _root(folder)
        files = [root / "qa" / name, *(root / "evidence" / folder for folder in self._folders)]
        if missing := [file for file in files if not file.exists()]:
            raise InputError(
                f"data.path is {str(path)!r}, which has no {missing[0].relative_to(root)}; expected qa/{name} and the "
                "folder evidence of TriviaQA, as distributed"
            )
        return files

    @property
    def _folders(self) -> tuple[str, ...]:
        """Of evidence, in which this domain's documents are."""
        return ("wikipedia",) if self.domain == "wikipedia" else ("web", "wikipedia")

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The questions of a split, in the order of its file."""
        self.check_split(split)
        with self._unpacked(path, split) as folder:
            file, *_ = self._find(folder, split, path)
            for example in self._questions(file, counts):
                if example["answers"] is None and split != "test":
                    raise InputError(f"question {example['id']!r} of {file.name} has no Answer; expected one")
                yield example

    @contextlib.contextmanager
    def _unpacked(self, path: Path, split: str) -> Iterator[Path]:
        """The folder; what this split needs of an archive, unpacked for a while."""
        if not path.is_file():
            yield path
            return
        wanted = (_FILES[split].replace("DOMAIN", self.domain), *(f"evidence/{folder}/" for folder in self._folders))
        with tempfile.TemporaryDirectory() as folder:
            with opened_archive(path, "triviaqa-rc.tar.gz") as archive:
                for member in archive:
                    if member.isfile() and any(f"/{part}" in f"/{member.name}" for part in wanted):
                        archive.extract(member, folder, filter="data")
            yield Path(folder)

    def read_own(self, path: Path) -> Iterator[Example]:
        """A file of TriviaQA's format in a folder beside evidence/; or records with `question` and `text`.

        A record may have an `id` and, in JSON lines, a list of `answers`.
        """
        if not kind_of(path):
            yield from self._questions(path, Counts())
            return
        for number, (place, record) in enumerate(read_records(path), start=1):
            yield {
                **self.from_question(text_field(place, record, "question"), text_field(place, record, "text"), place),
                "id": text_field(place, record, "id") if "id" in record else str(number),
                "answers": text_list(place, record, "answers") if record.get("answers") is not None else None,
            }

    def from_text(self, text: str, name: str) -> Example:
        """No example, as a question is missing."""
        raise InputError(f"{name} has no question, which task {self.kind!r} needs; expected one beside the text")

    def from_question(self, question: str, text: str, name: str) -> Example:
        """A question about a document."""
        for field, value in (("question", question), ("text", text)):
            if not value.strip():
                raise InputError(
                    f"{name}: {field} is empty; expected a {'question' if field != 'text' else 'document'}"
                )
        return {"id": name, "question": question, "names": [name], "texts": [text], "answers": None}

    def _questions(self, file: Path, counts: Counts) -> Iterator[Example]:
        """The examples of a file of TriviaQA's format."""
        evidence = file.absolute().parent.parent / "evidence"
        is_verified, found = file.name.startswith("verified-"), False
        for place, record in read_list(file, "Data.item"):
            found = True
            if is_verified and not record.get("QuestionPartOfVerifiedEval"):
                continue
            if (self.domain == "web") != ("SearchResults" in record):  # which the files of the web alone have
                has, other = ("no SearchResults", "wikipedia") if self.domain == "web" else ("SearchResults", "web")
                raise InputError(f"{place} has {has}; expected task.domain {other!r}, not {self.domain!r}, for it")
            name, question = text_field(place, record, "QuestionId"), text_field(place, record, "Question")
            pages = [
                (text_field(place, page, "Filename"), folder)
                for field, folder in _PAGES.items()
                for page in _pages(place, record, field)
                if not (is_verified and self.domain == "web") or page.get("DocPartOfVerifiedEval")
            ]
            documents = {filename: _document(place, evidence / folder / filename) for filename, folder in pages}
            if len(documents) < len(pages):
                counts["with a document that is listed twice"] += 1
            example = {"id": name, "question": question, "answers": _answers(place, record)}
            if self.domain == "wikipedia":
                yield example | {"names": [*documents], "texts": [*documents.values()]}
                continue
            for filename, text in documents.items():
                yield example | {"id": f"{name}--{filename}", "names": [filename], "texts": [text]}
        if not found:
            raise InputError(f"{str(file)!r} has no list 'Data'; expected a file of TriviaQA's format")

    def is_labelled(self, example: Example) -> bool:
        """Whether answers are known."""
        return example["answers"] is not None

    # Features.

    def texts(self, example: Example) -> list[str]:
        """The question and the documents."""
        return [example["question"], *example["texts"]]

    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """A row for each document that is not empty, and what is needed to find the text of a span of it again."""
        least = self.max_question_tokens + 4
        if packer.sequence_length < least:
            raise InputError(
                f"sequence_length is {packer.sequence_length:,}; expected at least {least:,}, room for a question of "
                f"{self.max_question_tokens:,} tokens, a token of a document, <s> and twice </s>"
            )
        question, *documents = encodings
        front = [packer.bos_token_id, *question.ids[: self.max_question_tokens], packer.sep_token_id]
        room = packer.sequence_length - len(front) - 1
        happened, answers = set(), example["answers"]
        if len(question.ids) > self.max_question_tokens:
            happened.add(f"cut at {self.max_question_tokens:,} tokens")
        if not documents:
            happened.add("without a document")
        for number, (encoding, text) in enumerate(zip(documents, example["texts"], strict=True)):
            if not text.strip() or not encoding.ids:  # a tokenizer may leave nothing of a text
                happened.add("with an empty document")
                continue
            if len(encoding.ids) > room:
                happened.add(f"with a document cut at {packer.sequence_length:,} tokens")
            ids, offsets = encoding.ids[:room], encoding.offsets[:room]
            begins, ends = np.array(offsets).T
            read = int(ends[-1])
            _, sentence_end = sentence_around(text, read, read)
            row = {
                "input_ids": [*front, *ids, packer.sep_token_id],
                "document": [len(front), len(front) + len(ids)],
                "is_text": [False] * len(front) + [bool(text[a:b].strip()) for a, b in offsets] + [False],
                "number": [number],
                "begins": begins,
                "ends": ends,
                "text": np.frombuffer(text[:sentence_end].encode(), np.uint8),
            }
            if answers is not None:
                # With the next character, by which a word is seen to go on.
                spans = token_spans(find_answers(text[: read + 1], answers), begins, ends)
                if not spans:
                    happened.add(f"with a document whose first {packer.sequence_length:,} tokens have no answer")
                firsts, lasts = ({len(front) + span[i] for span in spans} for i in (0, 1))
                row |= {"firsts": sorted(firsts), "lasts": sorted(lasts)}
            yield row
        counts.update(happened)

    def fields(self) -> Mapping[str, Field]:
        """What a row has beside its tokens.

        `document`, where it begins and ends in the row; `is_text`, of it the tokens that are more than blanks; `firsts`
        and `lasts`, the first and last tokens of all answers; for decoding `number`, of the document, its `text` as
        UTF-8, and the characters of its tokens, `begins` and `ends`.
        """
        return {
            "input_ids": Field(),
            "document": Field(length=2),
            "is_text": Field("bool"),
            "firsts": Field(fill=-1),
            "lasts": Field(fill=-1),
            "number": Field(length=1, for_model=False),
            "begins": Field(for_model=False),
            "ends": Field(for_model=False),
            "text": Field("uint8", for_model=False),
        }

    # The model.

    def head(self, model: LongformerConfig) -> nn.Module:
        """Logits of each token as the first and as the last one of an answer."""
        return ForQuestionAnswering(model)

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """With <s> and the question as global tokens."""
        places = jnp.arange(batch["input_ids"].shape[1])[None]
        mask = places < batch["document"][:, :1] - 1  # where </s> is
        masks = {"global_attention_mask": mask, "max_global_tokens": 1 + self.max_question_tokens}
        return super().inputs(batch, model, sequence_length) | masks

    def loss(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """The mean of that of the first and of the last token, in nats."""
        valid = jnp.arange(output.logits.shape[1])[None] <= batch["document"][:, 1:]
        first, last = (
            any_of_loss(output.logits[..., i], batch[name], valid) for i, name in enumerate(("firsts", "lasts"))
        )
        return (first + last) / 2

    def outputs(self, output: Any, batch: Mapping[str, jax.Array]) -> Any:
        """The best span of the document, int32 `[B]` each for its first and last token, and its score."""
        first, last, score = best_pair(
            output.logits, batch["is_text"], candidates=self.candidates, longest=self.max_answer_tokens
        )
        return {"first": first, "last": last, "score": score}

    # Answers.

    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """The best span over all documents.

        Returns:
          {"id", "answer", "score": the sum of its logits, "document": its name, "start" and "end": its characters in
          the document, "sentence": in which it stands, "characters": how many of the document the model has read}; an
          answer of "" and None for all else where there is no span.
        """
        both = zip(rows, outputs, strict=True)
        spans = [(row, output) for row, output in both if is_span(output["score"], example["id"])]
        if not spans:
            nothing = dict.fromkeys(_UNANSWERED)
            return {"id": example["id"], "answer": "", **nothing}
        row, output = max(spans, key=lambda span: float(span[1]["score"]))
        text, offset = row["text"].tobytes().decode(), row["document"][0]
        start, end = int(row["begins"][output["first"] - offset]), int(row["ends"][output["last"] - offset])
        answer = text[start:end].strip()
        start = text.index(answer, start)  # a token may begin with a space
        end = start + len(answer)
        begin, close = sentence_around(text, start, end)
        return {
            "id": example["id"],
            "answer": answer,
            "score": round(float(output["score"]), 4),
            "document": example["names"][int(row["number"][0])],
            "start": start,
            "end": end,
            "sentence": text[begin:close],
            "characters": int(row["ends"][-1]),
        }

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """`exact_match` and `f1`, each the best over all answers; the official scorer's, divided by 100."""
        scores = [
            triviaqa_score(prediction["answer"], example["answers"])
            for prediction, example in zip(predictions, examples, strict=True)
        ]
        exact, f1 = (sum(values) / len(values) for values in zip(*scores, strict=True))
        return {"exact_match": exact, "f1": f1}

    def describe(self, prediction: Any) -> str:
        """The answer, its score and its sentence."""
        if prediction["score"] is None:
            return "no answer"
        return as_line(prediction["answer"], f"{prediction['score']:.4f}", prediction["sentence"])

    def marked(self, example: Example, prediction: Any) -> Marked:
        """The document that has the answer, or else the first."""
        heading, note = example["question"], self.describe(prediction)
        if prediction["score"] is None:
            name, text = next(zip(example["names"], example["texts"], strict=True), ("", ""))
            return Marked(heading, note, name, text, ())
        text = example["texts"][example["names"].index(prediction["document"])]
        start, end = prediction["start"], prediction["end"]
        spans = [(start, end, "answer"), (*sentence_around(text, start, end), "sentence")]
        spans.append((prediction["characters"], len(text), "unread"))
        return Marked(heading, note, prediction["document"], text, spans)

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """The official format: {id: answer}."""
        with replacing(path) as partial:
            answers = {prediction["id"]: prediction["answer"] for prediction in predictions}
            partial.write_text(json.dumps(answers, ensure_ascii=False, indent=1), encoding="utf-8")


def _root(folder: Path) -> Path:
    """The folder with qa/, or the one in it that has that."""
    if folder.is_dir() and not (folder / "qa").is_dir():
        return next((inner for inner in sorted(folder.iterdir()) if (inner / "qa").is_dir()), folder)
    return folder


def _pages(place: str, record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    pages = record.get(field, [])
    if not isinstance(pages, list) or not all(isinstance(page, dict) for page in pages):
        raise InputError(f"{place}: {field} is {pages!r:.80}; expected a list of documents")
    return pages


def _answers(place: str, record: dict[str, Any]) -> list[str] | None:
    """All that the official scorer takes."""
    answer = record.get("Answer")
    if answer is None:
        return None
    if not isinstance(answer, dict):
        raise InputError(f"{place}: Answer is {answer!r:.80}; expected a JSON object")
    human = text_list(place, answer, "HumanAnswers") if answer.get("HumanAnswers") else []
    return text_list(place, answer, "NormalizedAliases") + human


def _document(place: str, file: Path) -> str:
    try:
        return read_file(file).decode()
    except FileNotFoundError:
        raise InputError(f"{place} names {file.name!r}, which is not in {str(file.parent)!r}; expected it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{str(file)!r} is no UTF-8 at byte {error.start:,}; expected text in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(
            f"{place}: Filename {shown(file.name)} cannot be read ({reason}); expected a document's"
        ) from None
