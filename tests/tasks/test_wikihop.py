"""WikiHop: reading, rows of pieces, the scores of candidates, and the way from texts to answers and back."""

import collections
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import InputError, LongformerConfig, load_pretrained
from longformer_jax.data.packing import Packer
from longformer_jax.evaluation import evaluate
from longformer_jax.models import Longformer
from longformer_jax.scripts.predict import run as predict
from longformer_jax.tasks.base import HEAD_FILE
from longformer_jax.tasks.features import FeatureSet, make_features
from longformer_jax.tasks.wikihop import WikiHop
from longformer_jax.training import MeshConfig, OptimizerConfig, TaskDataConfig, TaskExperiment, TaskPhase, train
from longformer_jax.training.prediction import Predictor
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.workdir import restore_chosen
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks.sets import SHARED
from tests.training.tiny_task import by_heart

SAMPLE = SHARED / "wikihop_2_examples.json"
TASK = WikiHop(max_pieces=3, max_candidates=4, max_global_tokens=24)
QUESTIONS = [
    {
        "id": "q0",
        "query": "jumps_over dog",
        "candidates": ["fox", "lazy dog", "Über-jam"],
        "supports": ["the quick brown fox jumps", "over a lazy dog"],
        "answer": "lazy dog",
    },
    {
        "id": "q1",
        "query": "boil jam",
        "candidates": ["seven wizards", "a fox"],
        "supports": ["while seven wizards boil jam " * 4, "[ent] </s> the end", "quick"],
        "answer": "seven wizards",
    },
]
MODEL = LongformerConfig(
    vocab_size=324,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=66,
    attention_window=8,
    initializer_range=0.2,
)


def packer(length: int = 64) -> Packer:
    tokenizer = type(tiny_tokenizer()).from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens([*TASK.added_tokens])
    return Packer.of(tokenizer, length)


def features(questions: list[dict[str, Any]] = QUESTIONS, task: WikiHop = TASK, length: int = 64) -> FeatureSet:
    return make_features(task, questions, packer(length), "questions")


# ---- Reading ---------------------------------------------------------------------------------------------------------


def test_the_official_files(tmp_path: Path) -> None:
    folder = tmp_path / "qangaroo_v1.1" / "wikihop"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps([{**q, "annotations": [["follows"]]} for q in QUESTIONS]))
    (folder / "dev.json").write_text(json.dumps(QUESTIONS[:1]))
    for path in (tmp_path, folder):
        assert list(TASK.read(path, "train", collections.Counter())) == QUESTIONS
        assert list(TASK.read(path, "validation", collections.Counter())) == QUESTIONS[:1]
    with pytest.raises(InputError, match=r"^split is 'test', which wikihop does not have; expected one of train, val"):
        list(TASK.read(tmp_path, "test", collections.Counter()))
    (folder / "dev.json").unlink()
    with pytest.raises(InputError, match=r"^data.path is '.*', which has no dev.json; expected the folder wikihop"):
        list(TASK.read(tmp_path, "validation", collections.Counter()))
    unanswered = {key: value for key, value in QUESTIONS[0].items() if key != "answer"}
    (folder / "train.json").write_text(json.dumps([unanswered]))
    assert list(TASK.read_own(folder / "train.json")) == [{**QUESTIONS[0], "answer": None}]
    (folder / "train.json").write_text(json.dumps([unanswered]), encoding="utf-8-sig")
    assert list(TASK.read_own(folder / "train.json")) == [{**QUESTIONS[0], "answer": None}]
    with pytest.raises(InputError, match=r"^question 'q0' of '.*' has no answer; expected a candidate$"):
        list(TASK.read(folder, "train", collections.Counter()))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": "a"', r"is damaged after record 0 \(.*\); expected a list in JSON"),
        ('{"data": []}', "own.json' begins with '{'; expected a list in JSON"),
        ("[3]", "record 1 of '.*' is a int; expected a JSON object"),
        ({"candidates": []}, r"record 1 of '.*': candidates is \[\]; expected a list of texts, at least one"),
        ({"candidates": "fox"}, "candidates is 'fox'; expected a list of texts"),
        ({"supports": [1]}, r"supports is \[1\]; expected a list of texts"),
        ({"query": None}, "query"),
        ({"answer": "cat"}, "answer is 'cat'; expected one of its 3 candidates"),
    ],
)
def test_bad_files(tmp_path: Path, content: Any, message: str) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps([{**QUESTIONS[0], **content}]) if isinstance(content, dict) else content)
    with pytest.raises(InputError, match=message):
        list(TASK.read_own(file))


def test_a_question_without_candidates() -> None:
    for ask in (TASK.from_text, lambda text, name: TASK.from_question("Who?", text, name)):
        with pytest.raises(
            InputError, match="^a.txt has no candidates, which task 'wikihop' needs; expected a JSON file"
        ):
            ask("A text.", "a.txt")


# ---- Rows ------------------------------------------------------------------------------------------------------------


def test_rows_of_one_piece_and_of_several() -> None:
    made = features()
    tokens = packer().tokenizer
    text = lambda row: tokens.decode([*row["input_ids"]], skip_special_tokens=False)  # noqa: E731
    first, second = made.row(0), made.row(1)
    assert text(first) == (
        "<s>[q] jumps over dog[/q][ent] fox[/ent][ent] lazy dog[/ent][ent] Über-jam[/ent]"
        "</s> the quick brown fox jumps</s> over a lazy dog</s>"
    )
    mark = tokens.token_to_id("[ent]")
    for row, number in ((first, 3), (second, 2)):
        assert [*row["input_ids"][row["candidates"]]] == [mark] * number
    assert (first["answer"].tolist(), second["answer"].tolist()) == ([1], [0])
    # The second question's documents take several pieces, which begin with the same tokens.
    short = features(length=32)
    row, whole = short.row(1), second
    pieces = [row["input_ids"][i : i + 32] for i in range(0, len(row["input_ids"]), 32)]
    prefix = int(row["prefix"][0])
    assert len(pieces) == 3 and [len(piece) for piece in pieces[:-1]] == [32, 32]
    for piece in pieces:
        assert [*piece[:prefix]] == [*whole["input_ids"][:prefix]]
    context = np.concatenate([piece[prefix:] for piece in pieces])
    np.testing.assert_array_equal(context, whole["input_ids"][prefix:][: len(context)])
    assert (context == mark).sum() == 0  # "[ent]" in a document is five characters
    assert TASK.lengths(32)[-2:] == (64, 96)
    assert WikiHop().lengths(4096)[-5:] == tuple(4096 * n for n in (2, 3, 4, 6, 8))


def test_what_is_cut_is_counted() -> None:
    assert features().counts == {}
    assert features(task=dataclasses.replace(TASK, max_pieces=1), length=32).counts["cut after 1 pieces of 32 tokens"]
    two = features(task=dataclasses.replace(TASK, max_candidates=2))
    assert two.counts == {"with candidates for which there is no room": 1}
    one = features([{**QUESTIONS[0], "answer": "Über-jam"}], dataclasses.replace(TASK, max_candidates=2))
    assert one.row(0)["answer"].tolist() == [-1] and len(one.row(0)["candidates"]) == 2
    few = features(task=dataclasses.replace(TASK, max_global_tokens=8))
    assert few.counts == {"with more than 8 tokens of query and candidates": 2}
    long = features([{**QUESTIONS[0], "query": "jam " * 100}])
    assert long.counts["query cut to half of 64 tokens"] == 1 and len(long.row(0)["candidates"]) == 3
    with pytest.raises(InputError, match="^sequence_length is 8; expected more, as a candidate of question 'q0' has "):
        features(length=8)


# ---- Scores ----------------------------------------------------------------------------------------------------------


def head_and_params(task: WikiHop = TASK) -> tuple[Any, LongformerConfig, Any]:
    model = dataclasses.replace(task.model(MODEL), vocab_size=MODEL.vocab_size + 4)
    head = task.head(model)
    batch = {"input_ids": np.zeros((1, 4), np.int32), "prefix": np.ones((1, 1), np.int32)}
    batch |= {"candidates": np.zeros((1, task.max_candidates), np.int32)}
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), **task.inputs(batch, model, 4))["params"])
    rng = np.random.default_rng(0)  # drawn without compiling
    return head, model, jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape) * 0.2, np.float32), shapes)


def test_scores_are_the_mean_over_pieces() -> None:
    head, model, params = head_and_params()
    encode = jax.jit(
        lambda *arrays: (
            Longformer(model, add_pooling_layer=False)
            .apply({"params": params["longformer"]}, *arrays, max_global_tokens=24)
            .last_hidden_state
        )
    )
    apply = jax.jit(lambda params, batch: head.apply({"params": params}, **TASK.inputs(batch, model, 32)))
    made = features(length=32)
    names = ["input_ids", "prefix", "candidates", "answer"]
    batch = made.batch([0, 1], 96, names)
    output = apply(params, batch)
    kernel = np.asarray(params["score"]["kernel"])[:, 0]
    expected = np.full((2, 4), -np.inf)
    for number in range(2):
        row = made.row(number)
        scores = []
        for start in range(0, len(row["input_ids"]), 32):
            piece = row["input_ids"][start : start + 32].astype(np.int32)
            ids = np.pad(piece, (0, 32 - len(piece)), constant_values=model.pad_token_id)[None]
            x = encode(ids, ids != model.pad_token_id, np.arange(32)[None] < row["prefix"][0])
            scores.append(np.asarray(x)[0, row["candidates"]] @ kernel)
        expected[number, : len(row["candidates"])] = np.mean(scores, axis=0)
    np.testing.assert_allclose(output.logits, expected, rtol=1e-4, atol=1e-5)
    probabilities = np.exp(expected) / np.exp(expected).sum(1, keepdims=True)
    np.testing.assert_allclose(TASK.outputs(output, batch), probabilities, rtol=1e-4, atol=1e-6)
    loss = -np.log(probabilities[[0, 1], [1, 0]])
    np.testing.assert_allclose(TASK.loss(output, batch), loss, rtol=1e-4)
    batch["answer"][0] = -1  # there was no room for it
    np.testing.assert_allclose(TASK.loss(output, batch), [0, loss[1]], rtol=1e-4)
    gradient = jax.jit(jax.grad(lambda params: TASK.loss(apply(params, batch), batch).sum()))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def test_without_global_attention() -> None:
    with pytest.raises(InputError, match="^global_attention is 'no'; expected True or False"):
        dataclasses.replace(TASK, global_attention="no")
    task = dataclasses.replace(TASK, global_attention=False)
    head, model, params = head_and_params(task)
    batch = features(task=task).batch([0], 64, ["input_ids", "prefix", "candidates"])
    inputs = task.inputs(batch, model, 64)
    assert inputs["global_attention_mask"] is None and "max_global_tokens" not in inputs
    far = jax.jit(lambda ids: head.apply({"params": params}, **inputs | {"input_ids": ids}).logits[0])
    ids, other = inputs["input_ids"], inputs["input_ids"].copy()
    other[0, 0, -2] = 5  # beyond the windows of both layers
    np.testing.assert_array_equal(far(ids), far(other))


# ---- Answers ---------------------------------------------------------------------------------------------------------


def samples() -> list[dict[str, Any]]:
    """Ours, and the two of the official set where they are at hand."""
    return [*QUESTIONS, *(TASK.read_own(SAMPLE) if SAMPLE.exists() else ())]


def test_the_gold_round_trip(tmp_path: Path) -> None:
    task = WikiHop()
    questions = samples()
    made = features(questions, task, 4096)
    assert made.counts == {}
    predictions = []
    for number, example in enumerate(made.examples):
        row = made.row(number)
        perfect = jax.nn.one_hot(row["answer"][0], task.max_candidates)
        predictions.append(task.decode(example, [row], [np.asarray(perfect)]))
    assert task.score(predictions, made.examples) == {"accuracy": 1.0}
    task.write_predictions(tmp_path / "answers.json", predictions, made.examples)
    assert json.loads((tmp_path / "answers.json").read_text()) == {q["id"]: q["answer"] for q in questions}
    assert predictions[0]["scores"] == {"fox": 0.0, "lazy dog": 1.0, "Über-jam": 0.0}
    assert task.describe(predictions[0]) == "lazy dog\t1.0000"


def test_a_model_that_has_diverged_does_not_answer() -> None:
    made = features(QUESTIONS[:1])
    with pytest.raises(InputError, match="^the scores of question 'q0' are no numbers; expected a model that has not"):
        TASK.decode(made.examples[0], [made.row(0)], [np.full(4, np.nan)])


def test_many_at_once_are_as_one_at_a_time() -> None:
    _, model, params = head_and_params()
    predictor = Predictor(TASK, model, 32, TASK.lengths(32), 4, make_mesh(MeshConfig()))
    together = predictor(params, features(length=32))
    apart = [predictor(params, features([question], length=32)) for question in QUESTIONS]
    for one, other in zip(together.predictions, (p.predictions[0] for p in apart), strict=True):
        assert one["answer"] == other["answer"] and one["scores"] == pytest.approx(other["scores"], abs=2e-6)
    assert together.loss == pytest.approx(np.mean([p.loss for p in apart]), rel=1e-5)


# ---- Training --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that learns questions by heart: they are the validation split, too."""
    folder = tmp_path_factory.mktemp("wikihop")
    names = ["fox", "dog", "jam", "wizards"]

    def question(number: int) -> dict[str, Any]:
        rng = random.Random(number)
        answer, *_ = candidates = rng.sample(names, 3)
        rng.shuffle(candidates)
        supports = ["the quick brown"] * 2 + [f"seven {answer}"]
        rng.shuffle(supports)
        return {"id": f"q{number}", "query": "boil", "candidates": candidates, "supports": supports, "answer": answer}

    (folder / "train.json").write_text(json.dumps([question(i) for i in range(64)]))
    (folder / "dev.json").write_text(json.dumps([question(i) for i in range(64)]))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    config = TaskExperiment(
        model=dataclasses.replace(MODEL, hidden_size=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        task=TASK,
        phases=(TaskPhase(sequence_length=32, learning_rate=5e-3, batch_size=16, steps=200),),
        data=TaskDataConfig(
            path=str(folder), tokenizer=str(folder / "tokenizer.json"), cache_dir=str(folder / "cache")
        ),
        lengths=(32,),
        optimizer=OptimizerConfig(clip_norm=1.0, decay="linear"),
        eval_interval=100,
        checkpoint_interval=200,
    )
    train(config, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_it_learns(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(record.get("accuracy", 0) for record in records) == 1.0


@pytest.mark.slow
def test_questions_of_ones_own(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In WikiHop's format: scored where they have answers, and answered where not."""
    data = json.loads((trained.parent / "dev.json").read_text())[:5]
    (tmp_path / "own.json").write_text(json.dumps(data))
    assert evaluate(trained, data=str(tmp_path / "own.json")).metrics["accuracy"] == 1.0
    questions = [{name: value for name, value in record.items() if name != "answer"} for record in data]
    (tmp_path / "open.json").write_text(json.dumps(questions))
    capsys.readouterr()
    predict([f"--workdir={trained}", "--json", str(tmp_path / "open.json")])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(p["id"], p["answer"]) for p in found] == [(record["id"], record["answer"]) for record in data]
    assert all(p["score"] == max(p["scores"].values()) and p["scores"].keys() == {*q["candidates"]}
               for p, q in zip(found, questions, strict=True))  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not SAMPLE.is_file(), reason="needs the sample of WikiHop")
def test_it_learns_the_sample(tmp_path: Path) -> None:
    """Its questions by heart, in pieces of 2,048 tokens; the ceiling is 1."""
    for name in ("train.json", "dev.json"):
        (tmp_path / name).write_bytes(SAMPLE.read_bytes())
    task = WikiHop(max_candidates=20, max_global_tokens=256)
    config = by_heart(task, tmp_path, tmp_path / "cache", length=2048, steps=40)
    phase = dataclasses.replace(config.phases[0], batch_size=2)
    train(dataclasses.replace(config, phases=(phase,), lengths=(4096,)), tmp_path / "run")
    result = evaluate(tmp_path / "run", split="train", predictions=tmp_path / "answers.json", batch_size=1)
    assert result.metrics["accuracy"] == 1.0
    records = json.loads(SAMPLE.read_text())
    assert json.loads((tmp_path / "answers.json").read_text()) == {q["id"]: q["answer"] for q in records}


@pytest.mark.slow
def test_what_a_run_leaves(trained: Path) -> None:
    _, params = restore_chosen(trained)
    config, encoder = load_pretrained(trained / "model", Longformer)
    assert config.vocab_size == MODEL.vocab_size + 4 == len(params["longformer"]["word_embeddings"]["embedding"])
    found = encoder["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(found, params["longformer"]["word_embeddings"]["embedding"])
    assert (trained / "model" / HEAD_FILE).is_file()
    tokens = json.loads((trained / "tokenizer.json").read_text())["added_tokens"]
    assert {"[q]", "[/q]", "[ent]", "[/ent]"} <= {token["content"] for token in tokens if token["special"]}
    assert jnp.isfinite(found).all()
