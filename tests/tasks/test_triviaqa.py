"""TriviaQA: its files, what becomes of them, and the way from a text to perfect logits, an answer and its score."""

import collections
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers

from longformer_jax import InputError, LongformerConfig
from longformer_jax.data.packing import Packer
from longformer_jax.models.heads import HeadOutput
from longformer_jax.tasks.answers import find_answers, triviaqa_score
from longformer_jax.tasks.extraction import any_of_loss, best_pair, sentence_around, token_spans
from longformer_jax.tasks.features import FeatureSet, make_features
from longformer_jax.tasks.triviaqa import TriviaQA
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks import sets
from tests.tasks.sets import EVIDENCE, SHARED, roberta_tokenizer, write_records

SAMPLE = SHARED / "triviaqa-sample.tgz"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sets.triviaqa(tmp_path_factory.mktemp("triviaqa"))


def read(task: TriviaQA, path: Path, split: str = "train", counts: Any = None) -> list[dict[str, Any]]:
    return list(task.read(path, split, collections.Counter() if counts is None else counts))


def features(task: TriviaQA, examples: list[dict[str, Any]], length: int = 256) -> FeatureSet:
    return make_features(task, examples, Packer.of(tiny_tokenizer(), length), "mine")


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_questions_about_wikipedia(data: Path, tmp_path: Path) -> None:
    archive = tmp_path / "triviaqa-rc.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(data, "triviaqa-rc")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer" / "triviaqa-rc").symlink_to(data)
    for path in (data, archive, tmp_path / "outer"):
        first, second = read(TriviaQA(), path)
        assert (first["id"], first["question"]) == ("tc_1", "Who dug the harbour of Vellmar?")
        assert first["names"] == ["Harbour.txt", "Tolk.txt", "Empty.txt"]
        assert first["texts"] == [EVIDENCE[f"wikipedia/{name}"] for name in first["names"]]
        assert (first["answers"], second["answers"]) == (["anna maria tolk", "tolk"], ["i̇zgür"])
        assert [example["id"] for example in read(TriviaQA(), path, "validation")] == ["tc_2", "tc_3"]
        assert [example["id"] for example in read(TriviaQA(), path, "verified")] == ["tc_2"]
        (test,) = read(TriviaQA(), path, "test")
        assert test == first | {"answers": None} and not TriviaQA().is_labelled(test)
    assert list(TriviaQA().read_own(data / "qa" / "wikipedia-train.json")) == [first, second]


def test_questions_about_the_web(data: Path) -> None:
    task = TriviaQA(domain="web")
    names = ["Tolk.txt", "12/12_7.txt", "9/9_1.txt"]
    examples = read(task, data)
    assert [example["id"] for example in examples] == [f"tc_4--{name}" for name in names]
    assert [example["names"] for example in examples] == [[name] for name in names]
    assert [example["id"] for example in read(task, data, "verified")] == ["tc_4--Tolk.txt", "tc_4--12/12_7.txt"]


def test_a_file_of_the_other_domain_or_of_a_relative_path(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data / "qa")
    assert [example["id"] for example in TriviaQA().read_own(Path("wikipedia-dev.json"))] == ["tc_2", "tc_3"]
    with pytest.raises(InputError, match="has no SearchResults; expected task.domain 'wikipedia', not 'web', for it$"):
        list(TriviaQA(domain="web").read_own(Path("wikipedia-dev.json")))


def test_records_of_ones_own(tmp_path: Path) -> None:
    records = [{"question": "Who?", "text": "Tolk.", "answers": ["TOLK"]}, {"id": 7, "question": "A?", "text": "B"}]
    found = list(TriviaQA().read_own(write_records(tmp_path / "own.jsonl", records)))
    assert [(example["id"], example["answers"]) for example in found] == [("1", ["TOLK"]), ("7", None)]
    write_records(tmp_path / "own.jsonl", [{"question": " ", "text": "B"}])
    with pytest.raises(InputError, match="^record 1 of '.*own.jsonl': question is empty; expected a question$"):
        list(TriviaQA().read_own(tmp_path / "own.jsonl"))


def test_files_in_bad_order(data: Path, tmp_path: Path) -> None:
    copy = sets.triviaqa(tmp_path / "copy")
    file = copy / "qa" / "wikipedia-train.json"
    whole = file.read_text()

    def refuse(message: str, content: str | None = None) -> None:
        if content is not None:
            file.write_text(content)
        with pytest.raises(InputError, match=f"^{message}"):
            read(TriviaQA(), copy)

    def changed(change: Callable[[dict], Any]) -> str:
        values = json.loads(whole)
        change(values["Data"][0])
        return json.dumps(values)

    refuse("'.*train.json' has no list 'Data'; expected a file of TriviaQA's format", '{"data": [{"paragraphs": []}]}')
    refuse("'.*train.json' is damaged after record [0-9]+ ", whole[: len(whole) // 2])
    refuse("record 1 of '.*' has no field 'QuestionId'; expected it beside", changed(lambda q: q.pop("QuestionId")))
    refuse("question 'tc_1' of wikipedia-train.json has no Answer; expected one", changed(lambda q: q.pop("Answer")))
    refuse("record 1 of '.*': Answer is 'x'; expected a JSON object", changed(lambda q: q.update(Answer="x")))
    refuse(
        "record 1 of '.*': NormalizedAliases is None; expected a list of texts, at least one",
        changed(lambda q: q["Answer"].pop("NormalizedAliases")),
    )
    refuse("record 1 of '.*': EntityPages is 'x'; expected a list of doc", changed(lambda q: q.update(EntityPages="x")))
    twice = changed(lambda q: q["EntityPages"].append({"Filename": "Tolk.txt"}))
    file.write_text(twice)
    counts: collections.Counter[str] = collections.Counter()
    assert len(read(TriviaQA(), copy, counts=counts)[0]["texts"]) == 3
    assert counts == {"with a document that is listed twice": 1}
    (copy / "evidence" / "wikipedia" / "Tolk.txt").write_bytes(b"a\xff")
    refuse("'.*Tolk.txt' is no UTF-8 at byte 1; expected text in UTF-8")
    (copy / "evidence" / "wikipedia" / "Tolk.txt").unlink()
    refuse("record 1 of '.*' names 'Tolk.txt', which is not in '.*wikipedia'; expected it")
    for name in ("a\0", "", "x" * 5000):
        named = changed(lambda q, name=name: q["EntityPages"][0].update(Filename=name))
        refuse(r"record 1 of '.*': Filename '.* cannot be read \(.*\); expected a document's", named)
    web = changed(lambda q: q.update(SearchResults=[]))
    refuse("record 1 of '.*' has SearchResults; expected task.domain 'web', not 'wikipedia', for it", web)
    file.unlink()
    refuse("data.path is '.*', which has no qa/wikipedia-train.json; expected qa/wikipedia-train.json and the folder")
    with pytest.raises(InputError, match="^split is 'dev', which triviaqa does not have; expected one of train, valid"):
        TriviaQA().files(copy, "dev")
    (tmp_path / "triviaqa-rc.tar.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"^data.path '.*' is damaged \(file could not be opened successfully\); expe"):
        read(TriviaQA(), tmp_path / "triviaqa-rc.tar.gz")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as archive:
        archive.add(copy / "evidence", "evidence")
    with pytest.raises(InputError, match="^data.path is '.*other.tgz', which has no qa/wikipedia-train.json; expected"):
        read(TriviaQA(), tmp_path / "other.tgz")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"domain": "wiki"}, "domain is 'wiki'; expected wikipedia or web"),
        ({"candidates": 0}, "candidates is 0; expected an integer >= 1"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        TriviaQA(**fields)


# ---- Features --------------------------------------------------------------------------------------------------------


def written(row: dict[str, np.ndarray], first: int, last: int) -> str:
    """The text of a span of a row."""
    offset = row["document"][0]
    return row["text"].tobytes().decode()[row["begins"][first - offset] : row["ends"][last - offset]].strip()


def test_rows(data: Path) -> None:
    examples = read(TriviaQA(), data)
    made = features(TriviaQA(max_question_tokens=40), examples)
    assert made.owners.tolist() == [0, 0, 1, 1] and made.counts == {
        "with an empty document": 1,
        "with a document whose first 256 tokens have no answer": 1,
    }
    encode = Packer.of(tiny_tokenizer(), 256).tokenizer.encode
    for i, (owner, number) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        row, example = made.row(i), examples[owner]
        ids = [encode(text, add_special_tokens=False).ids for text in (example["question"], example["texts"][number])]
        assert row["input_ids"].tolist() == [0, *ids[0], 2, *ids[1], 2]
        assert row["document"].tolist() == [len(ids[0]) + 2, len(ids[0]) + 2 + len(ids[1])]
        assert row["number"].tolist() == [number] and row["text"].tobytes().decode() == example["texts"][number]
        found = find_answers(example["texts"][number], example["answers"])
        assert len(row["lasts"]) == len({end for _, end in found})
        for first, place in zip(row["firsts"], sorted({start for start, _ in found}), strict=True):
            assert written(row, first, first)[0] == example["texts"][number][place]
    # One "tolk" is also the end of "Anna-Maria Tolk".
    row = made.row(0)
    assert [written(row, row["firsts"][0], last) for last in row["lasts"]][0] == "Anna-Maria Tolk"
    assert [
        written(made.row(2), *span) for span in zip(*(made.row(2)[k] for k in ("firsts", "lasts")), strict=True)
    ] == ["İzgür"]


def test_what_is_cut() -> None:
    """A question that is too long, and answers that the end of the row cuts; a word that goes on is no answer."""
    text = "the dog and the jam, the fox " + "and the boxes " * 3
    example = {
        "id": "1",
        "question": "what " * 50,
        "names": ["x"],
        "texts": [text],
        "answers": ["fox", "jam", "box", "boxes"],
    }
    task, lengths = TriviaQA(max_question_tokens=5), {}
    encoding = Packer.of(tiny_tokenizer(), 64).tokenizer.encode(text, add_special_tokens=False)
    for tokens in range(1, len(encoding.ids) + 1):
        made = features(task, [example], 5 + 3 + tokens)
        row, read = made.row(0), encoding.offsets[tokens - 1][1]
        assert len(row["input_ids"]) == 5 + 3 + tokens and len(row["begins"]) == tokens
        expected = [end for end in (text.index("jam") + 3, text.index("fox") + 3) if end <= read]
        expected += [place + 5 for place in range(len(text)) if text.startswith("boxes", place) and place + 5 <= read]
        assert [int(row["ends"][last - row["document"][0]]) for last in row["lasts"]] == expected
        lengths[tokens] = made.counts
    n = len(encoding.ids)
    no_answer = "with a document whose first {} tokens have no answer"
    assert lengths[1] == {"cut at 5 tokens": 1, "with a document cut at 9 tokens": 1, no_answer.format(9): 1}
    assert lengths[n] == {"cut at 5 tokens": 1}
    with pytest.raises(InputError, match="^sequence_length is 8; expected at least 9, room for a question of 5 tokens"):
        features(task, [example], 8)
    without = features(task, [example | {"names": [], "texts": []}, example | {"id": "2", "answers": None}], 64)
    assert without.counts["without a document"] == 1 and without.row(0)["firsts"].tolist() == []


def test_a_document_of_which_the_tokenizer_leaves_nothing() -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.normalizer = normalizers.Replace("\x01", "")
    example = {"id": "1", "question": "what", "names": ["x", "y"], "texts": ["\x01", "the fox"], "answers": ["fox"]}
    made = make_features(TriviaQA(), [example], Packer.of(tokenizer, 128), "mine")
    assert len(made) == 1 and made.counts == {"with an empty document": 1}


def test_tokens_of_spans() -> None:
    begins, ends = np.array([0, 2, 2, 6, 10]), np.array([2, 3, 3, 10, 12])  # the 2nd and 3rd are parts of one letter
    assert token_spans([(0, 2), (0, 3), (2, 3), (3, 6), (7, 9), (6, 12), (6, 13), (12, 13)], begins, ends) == [
        *((0, 0), (0, 2), (1, 2), (3, 3), (3, 4)),
    ]


@pytest.mark.parametrize(
    ("text", "span", "sentence"),
    [
        ("One. Two is 2.5 e.g. two! Three?", "two!", "Two is 2.5 e.g. two!"),
        ("One. Two is 2.5 e.g. two! Three?", "One", "One."),
        ("One. Two is 2.5 e.g. two! Three?", "Three", "Three?"),
        ("A title\n Its text goes on\n\nEnd", "text", "Its text goes on"),
        ("He said “No.” Then he left", "No.", "He said “No.”"),
        ("one sentence", "one sentence", "one sentence"),
        ("Over. The end", "Over. The", "Over. The end"),
        ("東京。大阪。", "大阪", "大阪。"),
    ],
)
def test_sentences(text: str, span: str, sentence: str) -> None:
    start = text.index(span)
    begin, end = sentence_around(text, start, start + len(span))
    assert text[begin:end] == sentence


# ---- Loss and decoding -----------------------------------------------------------------------------------------------


def test_loss() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32) * 3
    valid = np.arange(7)[None] < np.array([[7], [5], [6]])
    targets = np.array([[1, 4, 4, -1], [-1, -1, -1, -1], [5, 0, -1, -1]])
    expected = []
    for row, count, names in zip(logits, (7, 5, 6), ({1, 4}, set(), {0, 5}), strict=True):
        p = np.exp(row[:count].astype(np.float64)) / np.exp(row[:count].astype(np.float64)).sum()
        expected.append(-np.log(p[[*names]].sum()) if names else 0.0)
    loss, gradient = jax.value_and_grad(lambda x: any_of_loss(x, targets, valid).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(any_of_loss(jnp.asarray(logits), targets, valid), expected, atol=1e-5)
    assert loss == pytest.approx(sum(expected), rel=1e-5)
    assert np.isfinite(gradient).all() and not np.asarray(gradient)[1].any() and not np.asarray(gradient)[~valid].any()


@pytest.mark.parametrize("candidates", [1, 2, 3, 20])
def test_the_best_span_of_the_candidates(candidates: int) -> None:
    """Against all pairs, one by one; scores are whole numbers, so that there are equal ones."""
    rng = np.random.default_rng(candidates)
    logits = rng.integers(-4, 4, (40, 9, 2)).astype(np.float32)
    allowed = rng.random((40, 9)) < 0.7
    found = best_pair(jnp.asarray(logits), allowed, candidates=candidates, longest=4)
    for row, may, first, last, score in zip(logits, allowed, *map(np.asarray, found), strict=True):
        best = [sorted(np.flatnonzero(may), key=lambda t, i=i: (-row[t, i], t))[:candidates] for i in (0, 1)]
        pairs = [(row[a, 0] + row[b, 1], -a, -b) for a in best[0] for b in best[1] if a <= b < a + 4]
        assert score == max(pairs, default=(-np.inf,))[0]
        if pairs:
            assert (score, -first, -last) in pairs


def gold_outputs(task: TriviaQA, example: dict[str, Any], row: dict[str, np.ndarray], length: int, number: int) -> Any:
    """What the task makes of logits that are sure of one of a row's answers; if there is none, of its first token."""
    offset, text = row["document"][0], row["text"].tobytes().decode()
    spans = token_spans(find_answers(text, example["answers"]), row["begins"], row["ends"])
    first, last = spans[number % len(spans)] if spans else (0, 0)
    if spans:
        assert first + offset in row["firsts"] and last + offset in row["lasts"]
    logits = np.zeros((1, length, 2), np.float32)
    logits[0, first + offset, 0], logits[0, last + offset, 1] = (9, 9) if spans else (1, 1)
    # Whatever is said of the question and of what lies behind the document is no answer.
    logits[0, : row["document"][0]] = logits[0, row["document"][1] :] = 99
    batch = {"is_text": jnp.asarray(np.pad(row["is_text"], (0, length - len(row["is_text"]))))[None]}
    output = jax.jit(task.outputs)(HeadOutput(jnp.asarray(logits), None), batch)  # pyrefly: ignore[bad-argument-type]
    return jax.tree.map(lambda x: np.asarray(x)[0], output)


def round_trip(
    task: TriviaQA, examples: list[dict[str, Any]], made: FeatureSet, length: int, out: Path
) -> dict[str, float]:
    """Gold logits, decoded, written to the official file and scored from there."""
    predictions = []
    for i, example in enumerate(examples):
        rows = [made.row(j) for j in np.flatnonzero(made.owners == i)]
        outputs = [gold_outputs(task, example, row, length, number) for number, row in enumerate(rows)]
        kept = {name: example[name] for name in task.kept}
        predictions.append(task.decode(kept, rows, outputs))
    for prediction, example in zip(predictions, examples, strict=True):
        if prediction["score"] is not None:
            text = example["texts"][example["names"].index(prediction["document"])]
            assert text[prediction["start"] : prediction["end"]] == prediction["answer"]
            assert prediction["end"] <= prediction["characters"] <= len(text)
            assert prediction["answer"] in prediction["sentence"] and prediction["sentence"] in text
    task.write_predictions(out, predictions, examples)
    answers = json.loads(out.read_text())
    assert answers.keys() == {example["id"] for example in examples}
    scores = [triviaqa_score(answers[example["id"]], example["answers"]) for example in examples]
    metrics = task.score(predictions, examples)
    exact, f1 = np.mean(scores, axis=0)
    assert metrics == {"exact_match": pytest.approx(exact), "f1": pytest.approx(f1)}
    return metrics


@pytest.mark.parametrize(
    ("domain", "split", "exact"),
    [("wikipedia", "train", 1), ("wikipedia", "validation", 1 / 2), ("web", "train", 2 / 3)],
)
def test_gold_round_trip(data: Path, tmp_path: Path, domain: str, split: str, exact: float) -> None:
    """1 but for the documents in which no answer is."""
    task = TriviaQA(domain=domain)
    examples = read(task, data, split)
    metrics = round_trip(task, examples, features(task, examples), 256, tmp_path / "predictions.json")
    assert metrics["exact_match"] == pytest.approx(exact)


# Of real questions, those that the first 4,096 tokens of their documents answer.
CEILINGS = {
    ("wikipedia", "train"): (4, 4),
    ("wikipedia", "validation"): (2, 2),
    ("web", "train"): (7, 7),
    ("web", "validation"): (3, 5),
}


@pytest.mark.parametrize(("domain", "split"), CEILINGS)
@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs the sample of TriviaQA")
def test_gold_round_trip_of_the_sample(tmp_path: Path, domain: str, split: str) -> None:
    """1 but for the documents that 4,096 tokens cut before their first answer."""
    task, (answered, count) = TriviaQA(domain=domain), CEILINGS[domain, split]
    examples = read(task, SAMPLE, split)
    assert len(examples) == count
    made = make_features(task, examples, Packer.of(roberta_tokenizer(), 4096), "sample")
    has_answer = {int(owner) for i, owner in enumerate(made.owners) if len(made.row(i)["firsts"])}
    assert len(has_answer) == answered
    metrics = round_trip(task, examples, made, 4096, tmp_path / "predictions.json")
    assert metrics["exact_match"] == pytest.approx(answered / count)
    # The rest is lost to the cut: in the whole documents there are answers.
    for i, example in enumerate(examples):
        assert (i in has_answer) or any(find_answers(text, example["answers"]) for text in example["texts"])


def test_gold_against_gold(data: Path) -> None:
    for domain in ("wikipedia", "web"):
        examples = read(TriviaQA(domain=domain), data)
        predictions = [{"answer": answer} for example in examples for answer in example["answers"]]
        repeated = [example for example in examples for _ in example["answers"]]
        assert TriviaQA(domain=domain).score(predictions, repeated) == {"exact_match": 1.0, "f1": 1.0}


def test_no_answer_is_nowhere(data: Path) -> None:
    """Without a document, and with candidates that make no span."""
    example = read(TriviaQA(), data)[0]
    nothing = {
        "id": "tc_1",
        "answer": "",
        **dict.fromkeys(("score", "document", "start", "end", "sentence", "characters")),
    }
    row = features(TriviaQA(), [example]).row(0)
    output = {"first": np.int32(0), "last": np.int32(0), "score": np.float32(-np.inf)}
    for rows, outputs in (([], []), ([row], [output])):
        prediction = TriviaQA().decode(example, rows, outputs)
        assert prediction == nothing and json.dumps(prediction)
        assert TriviaQA().describe(prediction) == "no answer"
        marked = TriviaQA().marked(example, prediction)
        assert (marked.name, marked.text, marked.spans) == ("Harbour.txt", example["texts"][0], ())
    assert TriviaQA().score([nothing], [example]) == {"exact_match": 0.0, "f1": 0.0}


def test_global_tokens_are_the_question(data: Path) -> None:
    task = TriviaQA(max_question_tokens=40)
    made = features(task, read(task, data))
    batch = made.batch([0, 2], 256, ["input_ids", "document"])
    inputs = task.inputs({k: jnp.asarray(v) for k, v in batch.items()}, LongformerConfig(vocab_size=330), 256)
    for row, mask in zip(batch["input_ids"], np.asarray(inputs["global_attention_mask"]), strict=True):
        assert mask.nonzero()[0].tolist() == [*range(row.tolist().index(2))]
    assert inputs["max_global_tokens"] == 41


def test_blanks_are_no_answer() -> None:
    example = TriviaQA().from_question("Who?", "Foo \n\n\n bar.", "file")
    for tokenizer in (roberta_tokenizer(), tiny_tokenizer()):
        made = make_features(TriviaQA(), [example], Packer.of(tokenizer, 128), "mine")
        row = made.row(0)
        start, end = row["document"]
        text = example["texts"][0]
        places = zip(row["begins"], row["ends"], strict=True)
        assert row["is_text"][start:end].tolist() == [bool(text[a:b].strip()) for a, b in places]
        assert not all(row["is_text"][start:end]) and row["is_text"].sum() == row["is_text"][start:end].sum() >= 3
