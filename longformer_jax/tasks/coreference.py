"""Coreference: which spans of a document speak of the same (OntoNotes, CoNLL-2012; Longformer, section 6.1)."""

import codecs
import dataclasses
import io
import itertools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from longformer_jax.errors import InputError
from longformer_jax.files import replacing
from longformer_jax.models import LongformerConfig
from longformer_jax.tasks.base import (
    Counts,
    Example,
    Field,
    Marked,
    Task,
    as_line,
    check_diverged,
    save_encoder_and_head,
)
from longformer_jax.tasks.conll import BEGIN, Document, Mention, parse_documents, read_documents, without_crossing
from longformer_jax.tasks.coreference_model import CoreferenceSettings, FindCoreference, coreference_loss
from longformer_jax.tasks.coreference_scores import coreference_scores
from longformer_jax.tasks.extraction import sentence_spans
from longformer_jax.tasks.records import kind_of, read_records, shown, text_field
from longformer_jax.tasks.words import words_of

if TYPE_CHECKING:
    from tokenizers import Encoding

    from longformer_jax.data.packing import Packer

_log = logging.getLogger(__name__)

# Of OntoNotes; what begins with none of these has the last number.
GENRES = ("bc", "bn", "mz", "nw", "pt", "tc", "wb")
# What a split's files begin with, and its folder in OntoNotes.
_SPLITS = {"train": ("train", "train"), "validation": ("dev", "development"), "test": ("test", "test")}
# OntoNotes' languages, which are parts of the paths of its files.
_LANGUAGES = {"arabic", "chinese", "english"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coreference(CoreferenceSettings, Task):
    """`data.path` is a folder with train, dev and test in files of CoNLL-2012 or in JSON lines.

    The files are SPLIT.english.v4_gold_conll, or all *_conll in a folder train, development or test; or train.jsonl,
    validation.jsonl and test.jsonl, with `sentences` (lists of words), `clusters` (lists of [first, last] words of the
    document, from 0) and, if known, `id` (or `doc_key`), `speakers` (like the sentences) and `genre`, else what the id
    begins with. Of OntoNotes' folders, gold annotation is read where automatic annotation stands beside it, and English
    where other languages do.

    An example is {"id", "words", "sentences" and "speakers" of the words, "genre", "clusters"}, the last None where
    they are unknown. One of CoNLL-2012 also has its "conll", the document as it stands in the file; one of plain text
    its "text" and the "places" of the words in it, [start, end] in characters.

    A document that has more tokens than a row becomes several rows of whole sentences, which are decoded independently:
    no entity goes from one into another. Entities with a single mention, which OntoNotes does not have, are neither
    learnt nor found.

    Its settings are those of the head.
    """

    kind: str = "coreference"

    unit: ClassVar[str] = "documents"
    kept: ClassVar[Sequence[str]] = ("id", "words", "sentences", "clusters", "conll", "text", "places")
    targets: ClassVar[Sequence[str]] = ("mention_starts", "mention_ends", "mention_clusters")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.genres <= len(GENRES):
            raise InputError(
                f"genres is {self.genres}; expected at least {len(GENRES) + 1}, OntoNotes' and one for all others"
            )

    @property
    def selection(self) -> str:
        return "conll_f1"

    # Reading.

    def files(self, path: Path, split: str) -> list[Path]:
        """The split's files, in the order of their names."""
        self.check_split(split)
        name, folder = _SPLITS[split]
        found = [*path.glob(f"{name}*_conll"), *path.glob(f"{name}*_conll.gz")]
        found = found or [file for file in path.glob(f"{split}.jsonl*") if kind_of(file)]
        if not found:
            folders = [part for part in path.rglob(folder) if part.is_dir()]
            found = [file for part in folders for end in ("", ".gz") for file in part.rglob(f"*_conll{end}")]
        if not found:
            raise InputError(
                f"data.path is {str(path)!r}, which has no {split}; expected {name}.english.v4_gold_conll, a folder "
                f"{folder} of *_conll files, or {split}.jsonl"
            )
        return _wanted(sorted(set(found)), path)

    def read(self, path: Path, split: str, counts: Counts) -> Iterator[Example]:
        """The documents of a split."""
        for file in self.files(path, split):
            for example in self.read_own(file):
                if example["clusters"] is None:
                    raise InputError(f"document {example['id']!r} of {file.name} has no clusters; expected them")
                yield example

    def is_own(self, path: Path) -> bool:
        """Also files whose name ends in conll, or which begin as those of CoNLL-2012 do."""
        return super().is_own(path) or path.name.removesuffix(".gz").endswith("conll") or _begins_as_conll(path)

    def read_own(self, path: Path) -> Iterator[Example]:
        """A file of CoNLL-2012, or JSON lines in which clusters may be missing."""
        if kind_of(path) is None:
            for document in read_documents(path):
                if not all(document.words):
                    raise InputError(f"{str(path)!r}: document {document.name!r} has no words in its fourth column")
                name = f"{document.name}_{document.part}" if document.part else document.name
                yield {
                    "id": name,
                    "words": document.words,
                    "sentences": document.sentences,
                    "speakers": document.speakers,
                    "genre": document.name[:2],
                    "clusters": [[[*mention] for mention in cluster] for cluster in document.clusters],
                    "conll": str(document),
                }
            return
        for number, (place, record) in enumerate(read_records(path), start=1):
            sentences = _sentences(place, record)
            count = sum(map(len, sentences))
            known = {name for name, value in record.items() if value is not None}
            key = next((key for key in ("id", "doc_key") if key in known), None)
            name = text_field(place, record, key) if key else str(number)
            if not name:
                raise InputError(
                    f"{place}: {key} is ''; expected a text, as it names the document in files of CoNLL-2012"
                )
            speakers = record.get("speakers")
            if speakers is not None and [len(s) for s in _lists(place, record, "speakers")] != [*map(len, sentences)]:
                raise InputError(f"{place}: speakers is {shown(speakers)}; expected one for each word, by sentences")
            yield {
                "id": name,
                "words": [word for sentence in sentences for word in sentence],
                "sentences": [i for i, sentence in enumerate(sentences) for _ in sentence],
                "speakers": ["-"] * count if speakers is None else [name for names in speakers for name in names],
                "genre": (text_field(place, record, "genre") if "genre" in known else name)[:2],
                "clusters": _clusters(place, record, count) if "clusters" in known else None,
            }

    def from_text(self, text: str, name: str) -> Example:
        """Plain text, in sentences and words by simple rules; raises InputError for a document of CoNLL-2012."""
        if text.lstrip().startswith(BEGIN):
            raise InputError(f"{name} begins with {BEGIN}; expected plain text, or a file for predict without --whole")
        found = [
            (number, word, [begin + start, begin + end])
            for number, (begin, close) in enumerate(sentence_spans(text))
            for word, start, end in words_of(text[begin:close])
        ]
        if not found:
            raise InputError(f"{name}: text is empty; expected a document")
        numbers, words, places = (list(column) for column in zip(*found, strict=True))
        return {
            "id": name, "words": words, "sentences": numbers, "speakers": ["-"] * len(words), "genre": "",
            "clusters": None, "text": text, "places": places,
        }  # fmt: skip

    def is_labelled(self, example: Example) -> bool:
        """Whether clusters are known."""
        return example["clusters"] is not None

    # Features.

    def texts(self, example: Example) -> list[str]:
        """All words, each with a space before it."""
        return ["".join(f" {word}" for word in example["words"])]

    def rows(
        self, example: Example, encodings: "Sequence[Encoding]", packer: "Packer", counts: Counts
    ) -> Iterator[dict[str, Any]]:
        """A row for as many whole sentences as it has room for; a longer sentence is cut between words."""
        (encoding,) = encodings
        words = example["words"]
        # Where each word ends in the text; a token is part of the word in which it ends.
        ends = np.cumsum([1 + len(word) for word in words])
        token_words = np.searchsorted(ends, [b for _, b in encoding.offsets])
        bounds = np.searchsorted(token_words, np.arange(len(words) + 1))
        speakers = {name: i for i, name in enumerate(dict.fromkeys(example["speakers"]))}
        pieces = list(_pieces(example["sentences"], bounds, packer.sequence_length - 2))
        if len(pieces) > 1:
            counts[f"in parts of at most {packer.sequence_length:,} tokens"] += 1
        for first, last in pieces:  # words
            begin, end = int(bounds[first]), int(bounds[last])
            inside = token_words[begin:end]
            starts_word = np.diff(inside, prepend=-1) != 0
            row = {
                "input_ids": [packer.bos_token_id, *encoding.ids[begin:end], packer.sep_token_id],
                "may_start": [0, *starts_word, 0],
                "may_end": [0, *np.append(starts_word[1:], True)[: len(inside)], 0],
                "sentence": [-1, *(example["sentences"][word] for word in inside), -1],
                "speaker": [-1, *(speakers[example["speakers"][word]] for word in inside), -1],
                "genre": [GENRES.index(example["genre"]) if example["genre"] in GENRES else len(GENRES)],
                "word": [-1, *inside, -1],
            }
            if example["clusters"] is not None:
                row |= _gold(example["clusters"], first, last, 1 - begin, bounds)
                mentions, tokens = len(row["mention_starts"]), len(row["input_ids"])
                if mentions > tokens:  # there is room for as many
                    raise InputError(
                        f"clusters of {example['id']!r} have {mentions:,} mentions in a row of {tokens:,} tokens; "
                        "expected at most one for each token"
                    )
            yield row

    def fields(self) -> Mapping[str, Field]:
        """What a row has beside its tokens.

        Of tokens: `may_start` and `may_end`, whether a word does; `sentence`, `speaker`; for decoding `word`, its
        number. `genre`; and of mentions their first and last tokens and their entity.
        """
        mention = Field(fill=-1)
        return {
            "input_ids": Field(),
            "may_start": Field("bool"),
            "may_end": Field("bool"),
            "sentence": Field(fill=-1),
            "speaker": Field(fill=-1),
            "genre": Field(length=1),
            "mention_starts": mention,
            "mention_ends": mention,
            "mention_clusters": mention,
            "word": Field(fill=-1, for_model=False),
        }

    # The model.

    def head(self, model: LongformerConfig) -> nn.Module:
        """Mentions and their antecedents."""
        return FindCoreference(model, self)

    def inputs(self, batch: Mapping[str, jax.Array], model: LongformerConfig, sequence_length: int) -> dict[str, Any]:
        """With what is known of the tokens."""
        document = {name: batch[name] for name in ("may_start", "may_end", "sentence", "speaker")}
        document["genre"] = batch["genre"][:, 0]
        return super().inputs(batch, model, sequence_length) | {"document": document}

    def loss(self, output: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """As in `coreference_loss`, in nats, of all kept spans of a row together."""
        return coreference_loss(output, batch["mention_starts"], batch["mention_ends"], batch["mention_clusters"])

    def outputs(self, output: Any, batch: Mapping[str, jax.Array]) -> Any:
        """The kept spans, and of each the number of its likeliest antecedent, -1 where that is none.

        `diverged` says whether a score is no number.
        """
        best = jnp.argmax(output.scores, axis=-1)
        chosen = jnp.take_along_axis(output.antecedents, jnp.maximum(best - 1, 0)[..., None], axis=-1)[..., 0]
        antecedent = jnp.where((best > 0) & output.kept, chosen, -1)
        diverged = jnp.isnan(output.scores).any((-2, -1))
        return {"starts": output.starts, "ends": output.ends, "antecedents": antecedent, "diverged": diverged}

    def save(self, directory: Path, model: LongformerConfig, params: Any) -> None:
        """transformers has no such head."""
        save_encoder_and_head(directory, model, params)

    # Answers.

    def decode(self, example: Example, rows: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[Any]) -> Any:
        """{"id", "sentences": lists of words, "clusters": of [first, last] words, "mentions": their texts}.

        As the task's JSON lines, which it reads. Of plain text also "characters", like the clusters: where the mentions
        begin and end in it.
        """
        clusters: list[list[Mention]] = []
        for row, output in zip(rows, outputs, strict=True):
            check_diverged(output["diverged"], f"document {example['id']!r}")
            of_span: dict[int, list[Mention]] = {}
            for number, antecedent in enumerate(output["antecedents"]):
                if antecedent < 0:
                    continue
                if int(antecedent) not in of_span:
                    of_span[int(antecedent)] = [_words_of(row, output, int(antecedent))]
                    clusters.append(of_span[int(antecedent)])
                of_span[number] = of_span[int(antecedent)]
                of_span[number].append(_words_of(row, output, number))
        text, places = _text(example)
        found = sorted(sorted(cluster) for cluster in clusters)
        characters = [[[places[first][0], places[last][1]] for first, last in cluster] for cluster in found]
        prediction = {
            "id": example["id"],
            "sentences": _by_sentence(example),
            "clusters": [[[*mention] for mention in cluster] for cluster in found],
            "mentions": [[" ".join(text[start:end].split()) for start, end in cluster] for cluster in characters],
        }
        return prediction | ({"characters": characters} if "text" in example else {})

    def score(self, predictions: Sequence[Any], examples: Sequence[Example]) -> dict[str, float]:
        """All of `coreference_scores`."""

        def sides() -> Iterator[tuple[Any, Any]]:
            for prediction, example in zip(predictions, examples, strict=True):
                yield tuple([[*map(tuple, c)] for c in item["clusters"]] for item in (example, prediction))  # pyrefly: ignore

        return coreference_scores(sides())

    def describe(self, prediction: Any) -> str:
        """The mentions of each entity."""
        entities = (" = ".join(mentions) for mentions in prediction["mentions"])
        return as_line(*entities) or "no coreference"

    def marked(self, example: Example, prediction: Any) -> Marked:
        """The document and the mentions, by the numbers of entities from 1."""
        text, places = _text(example)
        spans = [
            (places[first][0], places[last][1], f"entity {number}")
            for number, cluster in enumerate(prediction["clusters"], start=1)
            for first, last in cluster
        ]
        count = len(prediction["clusters"])
        note = f"{count} {'entity' if count == 1 else 'entities'} with several mentions"
        return Marked("Who and what is meant", note, example["id"], text, spans)

    def write_predictions(self, path: Path, predictions: Sequence[Any], examples: Sequence[Example]) -> None:
        """A file of CoNLL-2012: documents of such files with another last column, others with five columns.

        The format cannot hold mentions of one entity that cross; the later one is left out, and the log says how many.
        """
        left_out, line_is_open = 0, False
        with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
            for prediction, example in zip(predictions, examples, strict=True):
                clusters = without_crossing(prediction["clusters"])
                left_out += sum(map(len, prediction["clusters"])) - sum(map(len, clusters))
                text = str(_document(example).with_clusters(clusters))
                file.write("\n" * line_is_open + text)
                line_is_open = not text.endswith("\n")  # at the end of a file, behind which another one may come
        if left_out:
            _log.warning(
                "%s left out of %s, as each crosses another one of its entity",
                "1 mention" if left_out == 1 else f"{left_out:,} mentions",
                path.name,
            )


def _begins_as_conll(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(100).removeprefix(codecs.BOM_UTF8).lstrip().startswith(BEGIN.encode())


def _wanted(files: list[Path], path: Path) -> list[Path]:
    """Without automatic annotation beside gold, and other languages beside English."""

    def parts(file: Path) -> set[str]:
        return set(re.split(r"[/\\._]", str(file.relative_to(path))))

    for wanted, others in (("gold", {"auto"}), ("english", _LANGUAGES - {"english"})):
        if any(wanted in parts(file) for file in files):
            files = [file for file in files if wanted in parts(file) or not others & parts(file)]
    return files


def _text(example: Example) -> tuple[str, Sequence[Sequence[int]]]:
    """A document and where each word begins and ends: as it was written, or words with a line for each sentence."""
    if "text" in example:
        return example["text"], example["places"]
    text, places = "", []
    for number, word in enumerate(example["words"]):
        is_new = number and example["sentences"][number] != example["sentences"][number - 1]
        text += "\n" if is_new else " " * bool(number)
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places


def _by_sentence(example: Example) -> list[list[str]]:
    found = zip(example["sentences"], example["words"], strict=True)
    return [[word for _, word in sentence] for _, sentence in itertools.groupby(found, lambda pair: pair[0])]


def _document(example: Example) -> Document:
    """A document as a file of CoNLL-2012 has it, or is to have it."""
    if "conll" in example:
        return next(parse_documents(io.StringIO(example["conll"]), example["id"]))
    return Document.of_words(example["id"], example["words"], example["sentences"])


def _words_of(row: Mapping[str, np.ndarray], output: Mapping[str, np.ndarray], span: int) -> Mention:
    return int(row["word"][output["starts"][span]]), int(row["word"][output["ends"][span]])


def _pieces(sentences: Sequence[int], bounds: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """The first word and the one behind the last, of pieces of at most so many tokens: whole sentences if possible."""
    first, count = 0, len(sentences)
    while first < count:
        last = int(np.searchsorted(bounds, bounds[first] + room, "right")) - 1
        if last < count:
            whole = last
            while whole > first and sentences[whole - 1] == sentences[whole]:
                whole -= 1
            last = whole if whole > first else last
        last = min(max(last, first + 1), count)
        if bounds[last] - bounds[first] > room:
            tokens = bounds[last] - bounds[first]
            raise InputError(f"sequence_length is {room + 2:,}; expected more, as a word has {tokens:,} tokens")
        yield first, last
        first = last


def _gold(
    clusters: Sequence[Sequence[Sequence[int]]], first: int, last: int, shift: int, bounds: np.ndarray
) -> dict[str, Any]:
    """The mentions within words [first, last), of entities that have two of them at least; each counts once."""
    mentions: list[tuple[int, int, int]] = []
    seen: set[Mention] = set()
    for number, cluster in enumerate(clusters):
        inside = [(a, b) for a, b in cluster if first <= a and b < last]
        inside = [mention for mention in dict.fromkeys(inside) if mention not in seen]
        seen.update(inside)
        if len(inside) > 1:
            mentions += [(int(bounds[a]) + shift, int(bounds[b + 1]) - 1 + shift, number) for a, b in inside]
    mentions = [mention for mention in mentions if mention[0] <= mention[1]]  # of words that the tokenizer knows
    starts, ends, numbers = zip(*mentions, strict=True) if mentions else ((), (), ())
    return {"mention_starts": starts, "mention_ends": ends, "mention_clusters": numbers}


def _lists(place: str, record: Mapping[str, Any], name: str) -> list[list[str]]:
    value = record.get(name)
    is_right = isinstance(value, list) and all(
        isinstance(part, list) and all(isinstance(text, str) for text in part) for part in value
    )
    if not is_right or not value:
        raise InputError(f"{place}: {name} is {shown(value)}; expected lists of texts, at least one")
    return value


def _sentences(place: str, record: Mapping[str, Any]) -> list[list[str]]:
    sentences = _lists(place, record, "sentences")
    if not any(sentences) or not all(word.split() == [word] for words in sentences for word in words):
        raise InputError(f"{place}: sentences is {shown(sentences)}; expected words without spaces, at least one")
    return sentences


def _clusters(place: str, record: Mapping[str, Any], count: int) -> list[list[list[int]]]:
    clusters = record["clusters"]
    try:
        is_right = all(type(a) is type(b) is int and 0 <= a <= b < count for cluster in clusters for a, b in cluster)
    except (TypeError, ValueError):
        is_right = False
    if not isinstance(clusters, list) or not is_right:
        raise InputError(
            f"{place}: clusters is {shown(clusters)}; expected lists of [first, last], words 0 to {count - 1}"
        )
    return clusters
