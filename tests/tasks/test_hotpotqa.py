"""HotpotQA: its files, its two stages, its rows, and the way from texts to perfect logits, answers and scores."""

import collections
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError
from longformer_jax.data.packing import Packer
from longformer_jax.evaluation import evaluate
from longformer_jax.scripts.predict import run as predict
from longformer_jax.tasks.answers import hotpotqa_metrics, hotpotqa_score
from longformer_jax.tasks.features import FeatureSet, make_features
from longformer_jax.tasks.hotpotqa import Evidence, HotpotQA
from longformer_jax.training import MeshConfig, train
from longformer_jax.training.prediction import Predictor
from longformer_jax.training.sharding import make_mesh
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks.sets import SHARED, roberta_tokenizer
from tests.training.tiny_task import by_heart

SAMPLE = SHARED / "hotpotqa_50_examples.json"
TRAIN, DEV = "hotpot_train_v1.1.json", "hotpot_dev_distractor_v1.json"
TASK = HotpotQA(max_question_tokens=40, max_paragraphs=4, max_sentences=8)
RECORDS = [
    {
        "_id": "a1",
        "question": "Who dug the harbour of Vellmar?",
        "type": "bridge",
        "level": "easy",
        "context": [
            ["Vellmar", ["Vellmar is a town.", " Its harbour was dug by Tolk, <t> they say."]],
            ["Jam", ["Jam is boiled."]],
            ["Anna Tolk", ["Anna Tolk dug.", "", " Über 9 feet."]],
        ],
        "answer": "Anna Tolk",
        "supporting_facts": [["Vellmar", 1], ["Anna Tolk", 0]],
    },
    {
        "_id": "a2",
        "question": "Are both towns?",
        "context": [["One", ["One is a town."]], ["Two", ["Two is a dog.", " No, it is."]]],
        "answer": "no",
        "supporting_facts": [["One", 0], ["Two", 0]],
    },
]


def written(folder: Path, records: list[dict[str, Any]] = RECORDS) -> Path:
    folder.mkdir(exist_ok=True)
    for name in (TRAIN, DEV):
        (folder / name).write_text(json.dumps(records))
    return folder


def read(task: HotpotQA, path: Path, split: str = "train") -> list[dict[str, Any]]:
    return list(task.read(path, split, collections.Counter()))


def examples(records: list[dict[str, Any]], folder: Path, task: HotpotQA = TASK) -> list[dict[str, Any]]:
    file = folder / "records.json"
    file.write_text(json.dumps(records))
    return list(task.read_own(file))


def features(found: list[dict[str, Any]], task: HotpotQA = TASK, length: int = 256) -> FeatureSet:
    tokenizer = type(tiny_tokenizer()).from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens([*task.added_tokens])
    return make_features(task, found, Packer.of(tokenizer, length), "mine")


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_the_official_files(tmp_path: Path) -> None:
    path = written(tmp_path / "hotpot")
    first, second = read(TASK, path)
    assert first == {
        "id": "a1",
        "question": RECORDS[0]["question"],
        "titles": ["Vellmar", "Jam", "Anna Tolk"],
        "sentences": [sentences for _, sentences in RECORDS[0]["context"]],
        "answer": "Anna Tolk",
        "facts": [["Vellmar", 1], ["Anna Tolk", 0]],
        "untitled": False,
    }
    assert read(TASK, path, "validation")[1] == second
    unanswered = {k: v for k, v in RECORDS[0].items() if k not in ("answer", "supporting_facts")}
    assert examples([unanswered], tmp_path) == [{**first, "answer": None, "facts": None}]
    (path / TRAIN).write_text(json.dumps([unanswered]))
    with pytest.raises(InputError, match="^question 'a1' of hotpot_train_v1.1.json has no answer; expected one"):
        read(TASK, path)
    (path / DEV).unlink()
    with pytest.raises(
        InputError, match="^data.path is '.*', which has no hotpot_dev_distractor_v1.json; expected Hot"
    ):
        read(TASK, path, "validation")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"context": {"title": ["A"], "sentences": [["b"]]}},
            r"context is \{'title': .*; expected a list of \[title, \[",
        ),
        ({"context": []}, r"context is \[\]; expected"),
        ({"context": [["A", "b"]]}, r"context is \[\['A', 'b'\]\]; expected a list of"),
        (
            {"supporting_facts": [["Vellmar"]]},
            r"supporting_facts is \[\['Vellmar'\]\]; expected a list of \[title, num",
        ),
        ({"supporting_facts": None}, "supporting_facts is None; expected"),
        ({"question": 1.5}, "question is 1.5; expected a text"),
        ({"_id": None}, "_id is None; expected a text"),
    ],
)
def test_bad_records(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^record 1 of '.*': {message}"):
        examples([{**RECORDS[0], **changes}], tmp_path)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match=r"^loss_weights is \(1, 2\); expected four numbers, none less than 0"):
        HotpotQA(loss_weights=(1, 2))
    for field, value, expected in (
        ("candidates", 0, "an integer >= 1"),
        ("loss_weights", 5, "four numbers, none less than 0"),
        ("threshold", float("nan"), "a number"),
        ("threshold", "x", "a number"),
        ("stage_one", "x.json", "names of files"),
        ("most_paragraphs", 1, "an integer >= 2"),
    ):
        with pytest.raises(InputError, match=f"^{field} is {value!r}; expected {expected}"):
            HotpotQA(**{field: value})


def test_the_second_stage_reads_what_the_first_has_kept(tmp_path: Path) -> None:
    path, scores = written(tmp_path / "hotpot"), tmp_path / "scores.json"
    task = dataclasses.replace(TASK, stage_one=(str(scores),))
    with pytest.raises(InputError, match="^task.stage_one names '.*scores.json', which is no file; expected one of"):
        read(task, path)
    scores.write_text(json.dumps({"paragraphs": {"a1": [0.5, -3.5, -2.0], "a2": [-4.0, None]}}))
    first, second = read(task, path)
    assert (first["titles"], first["facts"]) == (["Vellmar", "Anna Tolk"], RECORDS[0]["supporting_facts"])
    assert second["titles"] == ["One", "Two"]  # at least two
    scores.write_text(json.dumps({"paragraphs": {"a1": [-3.0, -2.99, -2.9], "a2": [1.0, 1.0]}}))
    assert read(task, path)[0]["titles"] == [RECORDS[0]["context"][i][0] for i in (1, 2)]  # more than -3
    example = {"id": "many", "titles": [*"abcdefgh"], "sentences": [[letter] for letter in "abcdefgh"]}
    best = [5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 0.0, -1.0]
    assert task._second_stage(example, {"many": best})["titles"] == [*"acdef"]  # at most five
    assert task.files(path, "train") == [path / TRAIN, scores]  # so that other scores make other features
    scores.write_text(json.dumps({"paragraphs": {"a1": [9.0, 8.0, 7.0], "a2": [1.0, 1.0]}}))
    most = dataclasses.replace(task, most_paragraphs=2)
    assert [len(example["titles"]) for example in read(most, path)] == [2, 2]
    scores.write_text(json.dumps({"paragraphs": {"a1": [1.0]}}))
    with pytest.raises(InputError, match="^question 'a1' has 3 paragraphs and no scores of the first stage for each; "):
        read(task, path)
    for bad in (5, "ab", [1.0, "x", None], {"0": 1}, [float("nan"), 1.0, 1.0], [True, 1.0, 1.0]):
        scores.write_text(json.dumps({"paragraphs": {"a1": bad}}))
        with pytest.raises(
            InputError, match="^'.*scores.json' has .* as the paragraphs' scores of question 'a1'; expecte"
        ):
            read(task, path)
    scores.write_text("{}")
    with pytest.raises(InputError, match="scores.json' has no scores of paragraphs; expected predictions of the first"):
        read(task, path)


# ---- Loss and answers ------------------------------------------------------------------------------------------------


def gold(row: dict[str, np.ndarray], length: int, task: HotpotQA) -> Evidence:
    """What a perfect model says of a row."""

    def logits(targets: np.ndarray, size: int) -> np.ndarray:
        return np.where(np.isin(np.arange(size), targets), 9.0, -9.0)[None]

    def padded(values: np.ndarray, size: int) -> np.ndarray:
        return np.pad(np.where(values, 9.0, -9.0), (0, size - len(values)))[None]

    span = np.stack([logits(row["firsts"][:1], length), logits(row["lasts"][:1], length)], axis=-1)
    return Evidence(
        span=jnp.asarray(span, jnp.float32),
        answer_type=jnp.asarray(logits(row["answer_type"], 3), jnp.float32),
        sentences=jnp.asarray(padded(row["is_fact"], task.max_sentences), jnp.float32),
        paragraphs=jnp.asarray(padded(row["is_source"], task.max_paragraphs), jnp.float32),
    )


def names(made: FeatureSet) -> list[str]:
    return [name for name, field in made.fields.items() if field.for_model]


def gold_predictions(made: FeatureSet, task: HotpotQA) -> list[Any]:
    predictions = []
    for number, example in enumerate(made.examples):
        row = made.row(number)
        length = -(-len(row["input_ids"]) // 512) * 512
        output = task.outputs(gold(row, length, task), made.batch([number], length, names(made)))
        predictions.append(task.decode(example, [row], [jax.tree.map(lambda x: np.asarray(x)[0], output)]))
    return predictions


def test_the_gold_round_trip(tmp_path: Path) -> None:
    made = features(examples(RECORDS, tmp_path))
    predictions = gold_predictions(made, TASK)
    assert set(TASK.score(predictions, made.examples).values()) == {1.0}
    assert (predictions[0]["answer"], predictions[1]["answer"]) == ("Anna Tolk", "no")
    assert predictions[0]["support"] == ["Its harbour was dug by Tolk, <t> they say.", "Anna Tolk dug."]
    assert predictions[0]["paragraphs"] == [9.0, -9.0, 9.0]
    assert [predictions[0][name] for name in ("sentence", "place", "start", "end")] == [
        *("Anna Tolk dug.", ["Anna Tolk", 0], 0, 9),
    ]
    assert [predictions[1][name] for name in ("sentence", "place", "start", "end")] == [None] * 4
    page = TASK.marked(examples(RECORDS, tmp_path)[0], predictions[0])
    assert [(page.text[start:end], kind) for start, end, kind in page.spans] == [
        ("Anna Tolk", "answer"),
        (" Its harbour was dug by Tolk, <t> they say.", "sentence"),
        ("Anna Tolk dug.", "sentence"),
    ]
    assert page.text.startswith("Vellmar\nVellmar is a town. Its harbour") and page.heading == RECORDS[0]["question"]
    TASK.write_predictions(tmp_path / "out.json", predictions, made.examples)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["answer"] == {"a1": "Anna Tolk", "a2": "no"}
    assert content["sp"] == {record["_id"]: record["supporting_facts"] for record in RECORDS}
    # These are what the second stage reads.
    task = dataclasses.replace(TASK, stage_one=(str(tmp_path / "out.json"),))
    assert examples(RECORDS, tmp_path, task)[0]["titles"] == ["Vellmar", "Anna Tolk"]


@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs the sample of HotpotQA")
def test_the_gold_round_trip_of_the_sample(tmp_path: Path) -> None:
    """With RoBERTa's tokens and the defaults, through the official file: nothing is lost to the length."""
    task, tokenizer = HotpotQA(), roberta_tokenizer()
    tokenizer.add_special_tokens([*task.added_tokens])
    made = make_features(task, list(task.read_own(SAMPLE)), Packer.of(tokenizer, 4096), "sample")
    assert made.counts == {} and made.size == 50
    task.write_predictions(tmp_path / "out.json", gold_predictions(made, task), made.examples)
    records = json.loads(SAMPLE.read_text())
    metrics = hotpotqa_metrics(json.loads((tmp_path / "out.json").read_text()), records)
    assert len(metrics) == 12 and set(metrics.values()) == {1.0}


def test_no_candidates_make_a_span(tmp_path: Path) -> None:
    """The likeliest last tokens stand before the likeliest first ones; so there is no answer, rather than a bad one."""
    made = features(examples(RECORDS, tmp_path))
    output = gold(made.row(0), 256, TASK)
    (inside,) = np.nonzero(made.row(0)["part"] >= 0)
    span = np.full((1, 256, 2), -9.0, np.float32)
    span[0, inside[-20:], 0] = span[0, inside[:20], 1] = 9
    found = TASK.outputs(output.replace(span=jnp.asarray(span)), made.batch([0], 256, names(made)))
    prediction = TASK.decode(made.examples[0], [made.row(0)], [jax.tree.map(lambda x: np.asarray(x)[0], found)])
    assert (prediction["answer"], prediction["score"], prediction["place"]) == ("", None, None)
    assert prediction["facts"] == RECORDS[0]["supporting_facts"]
    assert TASK.describe(prediction).startswith("no answer\t\tIts harbour")
    assert {kind for *_, kind in TASK.marked(examples(RECORDS, tmp_path)[0], prediction).spans} == {"sentence"}


@pytest.mark.parametrize(("answer", "kind"), [("Yes", 1), ("No.", 2), ("yes!", 1), ("Yes it is", 0)])
def test_yes_and_no_are_what_the_scorer_takes_for_them(tmp_path: Path, answer: str, kind: int) -> None:
    made = features(examples([{**RECORDS[1], "answer": answer}], tmp_path))
    assert made.row(0)["answer_type"].tolist() == [kind]
    if kind:
        assert TASK.score(gold_predictions(made, TASK), made.examples)["joint_f1"] == 1.0


def test_a_model_that_has_diverged_does_not_answer(tmp_path: Path) -> None:
    made = features(examples(RECORDS[:1], tmp_path))
    output = {"answer_type": np.array([1.0, 0, 0]), "first": 0, "last": 0, "score": np.nan}
    output |= {"paragraphs": np.zeros(4), "sentences": np.zeros(8)}
    with pytest.raises(
        InputError, match="^the scores of question 'a1' are no numbers; expected a model that has not di"
    ):
        TASK.decode(made.examples[0], [made.row(0)], [output])


def test_evidence_comes_from_two_paragraphs(tmp_path: Path) -> None:
    made = features(examples(RECORDS[:1], tmp_path))
    row = made.row(0)
    output = {"answer_type": np.array([0.0, 3.0, 1.0]), "first": 0, "last": 0, "score": -np.inf}
    output["paragraphs"] = np.array([-5.0, 2.0, -2.99999, 99.0])  # the last is no paragraph
    output["sentences"] = np.array([9.0, 9.0, -1.0, -3.0, -2.0, -4.0, 9.0, 9.0])
    prediction = TASK.decode(made.examples[0], [row], [output])
    assert (prediction["answer"], prediction["score"]) == ("yes", 3.0)
    assert prediction["paragraphs"] == [-5.0, 2.0, -2.99999]  # the last is above the threshold of the second stage
    assert prediction["facts"] == [["Jam", 0], ["Anna Tolk", 1]]  # the best of each, as none is above 0


def test_the_loss(tmp_path: Path) -> None:
    task = dataclasses.replace(TASK, loss_weights=(1.0, 10.0, 100.0, 1000.0))
    made = features(examples(RECORDS, tmp_path), task)
    batch = made.batch([0, 1], 256, names(made))
    rng = np.random.default_rng(0)
    output = Evidence(
        *(
            jnp.asarray(rng.normal(size=shape), jnp.float32)
            for shape in ((2, 256, 2), (2, 3), (2, task.max_sentences), (2, task.max_paragraphs))
        )
    )
    expected = []
    for number in range(2):
        row = made.row(number)
        valid = np.zeros(256, bool)
        valid[: len(row["part"])] = row["part"] >= 0
        valid[0] = True
        softmax = lambda x, mask: np.where(mask, np.exp(x), 0) / np.exp(x)[mask].sum()  # noqa: E731
        span = 0.0
        for i, name in enumerate(("firsts", "lasts")):
            if len(row[name]):
                span += -np.log(softmax(np.asarray(output.span[number, :, i]), valid)[row[name]].sum()) / 2
        kinds = softmax(np.asarray(output.answer_type[number]), np.ones(3, bool))
        nats = []
        for logits, target in ((output.sentences, row["is_fact"]), (output.paragraphs, row["is_source"])):
            p = 1 / (1 + np.exp(-np.asarray(logits[number])[: len(target)]))
            nats.append(-np.mean(np.log(np.where(target, p, 1 - p))))
        expected.append(span - 10 * np.log(kinds[row["answer_type"][0]]) + 100 * nats[0] + 1000 * nats[1])
    np.testing.assert_allclose(task.loss(output, batch), expected, rtol=1e-5)


def drawn(head: Any, inputs: dict[str, Any]) -> Any:
    """Parameters, without compiling what draws them."""
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), **inputs)["params"])
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape) * 0.2, np.float32), shapes)


def test_global_tokens_and_heads(tmp_path: Path) -> None:
    """The question and all marks are global; the four heads in NumPy, on the encoder's output."""
    task = dataclasses.replace(TASK, max_question_tokens=20)
    made = features(examples([{**RECORDS[1], "_id": "a3", "answer": "Two"}, RECORDS[1]], tmp_path), task, 64)
    batch = made.batch([0, 1], 64, names(made))
    batch["input_ids"][1, 50:] = 1  # padding, and what it has no mark for
    batch["sentences"][1, 2:] = -1
    model = task.model(by_heart(task, tmp_path, tmp_path, length=64, steps=10).task_model)
    inputs = task.inputs(batch, model, 64)
    for row, mask in enumerate(np.asarray(inputs["global_attention_mask"])):
        marks = [place for name in ("titles", "sentences") for place in batch[name][row] if place >= 0]
        assert mask.nonzero()[0].tolist() == sorted({*range(batch["question"][row, 0]), *marks})
        assert mask.sum() <= inputs["max_global_tokens"]
    head = task.head(model)
    params = drawn(head, inputs)
    seen = lambda module, _: module.name == "longformer"  # noqa: E731
    apply = jax.jit(lambda params: head.apply({"params": params}, **inputs, capture_intermediates=seen))
    found, kept = apply(params)
    x = np.asarray(kept["intermediates"]["longformer"]["__call__"][0].last_hidden_state)

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ params[name]["kernel"] + params[name]["bias"]

    def scored(name: str, x: np.ndarray) -> np.ndarray:
        hidden = dense(f"{name}_dense", x)
        return dense(f"{name}_score", hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))) / 2)[:, 0]

    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(found.span, dense("span", x), **close)
    np.testing.assert_allclose(found.answer_type, dense("answer_type", x[:, 0]), **close)
    for name, places, scores in (("sentence", "sentences", found.sentences), ("paragraph", "titles", found.paragraphs)):
        for row in range(2):
            marks = batch[places][row][batch[places][row] >= 0]
            assert len(marks) > 0
            np.testing.assert_allclose(scores[row, : len(marks)], scored(name, x[row, marks]), **close)


# ---- Training --------------------------------------------------------------------------------------------------------


def _all_right(metrics: dict[str, float]) -> bool:
    return {value for name, value in metrics.items() if name != "loss"} == {1.0}


@pytest.mark.slow
def test_both_stages_and_a_question_about_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learnt by heart, by a tiny model from random weights."""
    path = written(tmp_path / "hotpot", [{**r, "_id": f"{r['_id']}-{i}"} for i in range(4) for r in RECORDS])
    train(by_heart(TASK, path, tmp_path / "cache", length=128, steps=60), tmp_path / "one")
    scores = tmp_path / "scores.json"
    result = evaluate(tmp_path / "one", split="train", predictions=scores)
    assert _all_right(result.metrics)
    task = dataclasses.replace(TASK, stage_one=(str(scores),))
    train(by_heart(task, path, tmp_path / "cache", length=128, steps=60), tmp_path / "two")
    assert _all_right(evaluate(tmp_path / "two", split="validation").metrics)
    text = "Jam is boiled. It is.\n\nAnna Tolk dug the harbour.\n\nTolk was an engineer. She sang."
    (tmp_path / "text.txt").write_text(text)
    capsys.readouterr()
    arguments = [f"--workdir={tmp_path / 'one'}", "--json", f"--html={tmp_path / 'page.html'}", "--question=Who dug?"]
    predict([*arguments, str(tmp_path / "text.txt")])
    found = json.loads(capsys.readouterr().out)
    assert [title for title, _ in found["facts"]] == sorted(title for title, _ in found["facts"])
    assert {title for title, _ in found["facts"]} < {"paragraph 1", "paragraph 2", "paragraph 3"}
    assert len({title for title, _ in found["facts"]}) == 2
    shown = (tmp_path / "page.html").read_text()
    assert re.sub("<[^>]*>", "", shown.partition("<article>")[2]).strip() == text
    marked = re.findall(r"<mark[^>]*sentence[^>]*>([^<]*)<", shown)
    assert " ".join("".join(marked).split()) == " ".join(found["support"])
    if found["start"] is not None:
        assert text[found["start"] : found["end"]] == found["answer"] and found["answer"] in found["sentence"]


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs the sample of HotpotQA")
def test_it_learns_the_sample(tmp_path: Path, optimized: None) -> None:
    """All fifty questions by heart; the ceiling is 1."""
    records = json.loads(SAMPLE.read_text())
    path, out = written(tmp_path / "hotpot", records), tmp_path / "out.json"
    task = HotpotQA(loss_weights=(1.0, 1.0, 10.0, 1.0))
    config = by_heart(task, path, tmp_path / "cache", length=4096, steps=150)
    config = dataclasses.replace(config, seed=1, optimizer=dataclasses.replace(config.optimizer, name="muon"))
    train(config, tmp_path / "run")
    metrics = evaluate(tmp_path / "run", split="train", predictions=out).metrics
    assert {metrics[name] for name in ("sp_em", "sp_f1", "recall", "joint_recall")} == {1.0}
    answers = json.loads(out.read_text())["answer"]
    both = [(answers[record["_id"]], record["answer"]) for record in records]
    wrong = [(answer, truth) for answer, truth in both if not hotpotqa_score(answer, truth).exact]
    assert len(both) == 50 and metrics["em"] == 1 - len(wrong) / 50
    # To the loss any occurrence is right, beginnings and ends apart, so one answer may reach from one to another.
    assert len(wrong) <= 1 and all(answer.startswith(truth) and answer.endswith(truth) for answer, truth in wrong)


@pytest.mark.slow
def test_many_at_once_are_as_one_at_a_time(tmp_path: Path) -> None:
    config = by_heart(TASK, tmp_path, tmp_path, length=256, steps=10)
    params = drawn(TASK.head(config.task_model), config._one_row())
    found = examples(RECORDS, tmp_path)
    predictor = Predictor(TASK, config.task_model, 256, (256,), 2, make_mesh(MeshConfig()))
    together = predictor(params, features(found)).predictions
    apart = [predictor(params, features([one])).predictions[0] for one in found]
    for one, other in zip(together, apart, strict=True):
        assert (one["answer"], one["facts"]) == (other["answer"], other["facts"])
        assert one["paragraphs"][:2] == pytest.approx(other["paragraphs"][:2], abs=1e-4)
