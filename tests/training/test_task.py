"""The experiment of a task: its configuration, its batches and its step, against the same things written out."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections.config_flags.tuple_parser import TupleParser

from longformer_jax import ForMaskedLM, InputError, LongformerConfig, load_pretrained, save_pretrained
from longformer_jax.models.heads import HeadOutput
from longformer_jax.models.longformer import EncoderOutput
from longformer_jax.tasks.classification import TextClassification
from longformer_jax.tasks.imdb import Imdb
from longformer_jax.training import ExperimentConfig, MeshConfig, TaskExperiment, TaskPhase, train
from longformer_jax.training.flops import encoder_flops_per_token
from longformer_jax.training.resumption import check_resumes
from longformer_jax.training.selection import Selection
from longformer_jax.training.sharding import accumulation_steps, make_mesh
from longformer_jax.training.step import abstract_params
from tests.models.encoders import random_params
from tests.tasks.sets import write_records
from tests.training.tiny_task import CONFIG, STEPS, with_data

MESH = make_mesh(MeshConfig())
PHASE = {"sequence_length": 8, "learning_rate": 1, "batch_size": 8, "steps": 9}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TaskExperiment:
    return with_data(tmp_path_factory.mktemp("task") / "data")


# ---- Configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [CONFIG.task, Imdb()], ids=["classification", "imdb"])
def test_round_trip_through_config_dict_and_json(tmp_path: Path, task: Any) -> None:
    config = dataclasses.replace(CONFIG, task=task, init="somewhere", patience=3, lengths=None)
    values = config.to_config_dict()
    assert ExperimentConfig.from_config_dict(values) == config
    config.save(tmp_path)
    assert ExperimentConfig.load(tmp_path) == config and json.loads((tmp_path / "config.json").read_text())
    assert hash(config) == hash(ExperimentConfig.load(tmp_path))
    if task is CONFIG.task:
        values.task.labels = ("x", "y", "z")
        values.task.positive_label = None
        assert TaskExperiment.from_config_dict(values).task_model.id2label == ("x", "y", "z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"kind": "summary"}}, "task.kind is 'summary'; expected one of classification, coreference"),
        ({"task": {"labels": ["a", "b"]}}, "task.kind is missing; expected one of classification, coreference,"),
        ({"task": {"kind": "classification"}}, r"task.labels is \(\); expected the names of at least two labels"),
        ({"task": {"kind": "imdb", "labels": []}}, r"task.labels is \[\]; expected no such key, but one"),
        ({"task": 5}, "task is 5; expected"),
        ({"phases": [PHASE | {"steps": 0}]}, r"phases\[0\].steps is 0; expected at least 1, or a number of epochs"),
        ({"phases": [PHASE | {"sequence_length": 33}]}, r"phases\[0\].sequence_length is 33; expected at most 32, mod"),
        ({"phases": [PHASE | {"sequence_length": 2}]}, r"phases\[0\].sequence_length is 2; expected at least 3"),
        ({"phases": [PHASE | {"epochs": 0}]}, r"phases\[0\].epochs is 0; expected at least 1"),
        ({"lengths": [32, 48]}, r"lengths is \(32, 48\); expected multiples of 32, the sequence_length, beyond it"),
        ({"lengths": [16, 8]}, r"lengths is \(16, 8\); expected lengths in ascending order"),
        ({"lengths": [8, 16]}, r"lengths is \(8, 16\); expected the last to be at least 32, a phase's length"),
        ({"positions": "sinusoidal"}, "positions is 'sinusoidal'; expected one of copied, random"),
        ({"patience": 0}, "patience is 0; expected at least 1"),
        ({"eval_interval": 0}, "eval_interval is 0; expected at least 1, to find the best"),
        ({"evaluations_per_epoch": -1}, "evaluations_per_epoch is -1; expected at least 0"),
    ],
)  # fmt: skip
def test_bad_configurations(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ExperimentConfig.from_dict({**CONFIG.to_dict(), **changes})


@pytest.mark.parametrize(
    ("flag", "labels"), [("neg,pos", ("neg", "pos")), ("0,1,2", ("0", "1", "2")), ("('a,b','c')", ("a,b", "c"))]
)
def test_labels_on_the_command_line(flag: str, labels: tuple[str, ...]) -> None:
    values = CONFIG.to_config_dict()
    values.task.positive_label = None
    values.task.labels = TupleParser().parse(flag)  # as ml_collections does
    assert TaskExperiment.from_config_dict(values).task == TextClassification(labels=labels)


def test_epochs_become_steps(config: TaskExperiment, tmp_path: Path) -> None:
    completed = config.completed(tmp_path)
    assert (completed.total_steps, completed.eval_interval, completed.checkpoint_interval) == (3 * STEPS, STEPS, STEPS)
    assert completed.completed(tmp_path) == completed
    twice = dataclasses.replace(config, evaluations_per_epoch=2).completed(tmp_path)
    assert (twice.eval_interval, twice.total_steps) == (STEPS // 2, 3 * STEPS)
    own = dataclasses.replace(config, evaluations_per_epoch=0, eval_interval=7).completed(tmp_path)
    assert (own.eval_interval, own.checkpoint_interval) == (7, 1000)
    in_steps = dataclasses.replace(config, phases=(dataclasses.replace(config.phases[0], epochs=None, steps=4),))
    assert in_steps.completed(tmp_path) is in_steps


def test_what_may_change_when_a_run_goes_on() -> None:
    (phase,) = CONFIG.phases
    before = dataclasses.replace(CONFIG, phases=(dataclasses.replace(phase, steps=18),))
    longer = dataclasses.replace(before, phases=(dataclasses.replace(phase, steps=24, epochs=4),), patience=2)
    check_resumes(longer, before, 18)
    with pytest.raises(InputError, match=r"configuration: task.labels\[0\] \('bad', now 'worse'\) changed; expected"):
        task = TextClassification(labels=("worse", "good"), positive_label="good")
        check_resumes(dataclasses.replace(before, task=task), before, 6)


def test_short_rows_are_taken_together() -> None:
    """As many tokens at once, whatever the length: 4 rows of 32, 8 of 16."""
    phase = dataclasses.replace(CONFIG.phases[0], sequences_per_device=4)
    config = dataclasses.replace(CONFIG, phases=(phase,))
    assert [accumulation_steps(config, 0, MESH, length) for length in (32, 16)] == [2, 1]


# ---- Data ------------------------------------------------------------------------------------------------------------


def test_batches_follow_from_the_step(config: TaskExperiment) -> None:
    config = dataclasses.replace(config, lengths=(16, 32))
    data = config.load_data()
    batches = config.train_batches(data, 0, start_step=0, process_index=0, process_count=1)
    first = [next(batches) for _ in range(2 * STEPS)]
    assert {batch["input_ids"].shape for batch in first} == {(8, 16), (8, 32)}
    for batch in first:
        spec = config.batch_specs(0, data)[batch["input_ids"].shape[1]]
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: (x.shape, x.dtype) for name, x in spec.items()
        }
    # Every row once an epoch.
    for epoch in (first[:STEPS], first[STEPS:]):
        rows = [tuple(row[row != 1]) for b in epoch for row, w in zip(b["input_ids"], b["weight"], strict=True) if w]
        everyone = [tuple(data.train[0].row(i)["input_ids"]) for i in range(45)]
        assert sorted(rows) == sorted(everyone)
    later = config.train_batches(data, 0, start_step=7, process_index=0, process_count=1)
    halves = [config.train_batches(data, 0, start_step=7, process_index=p, process_count=2) for p in (0, 1)]
    for expected in first[7:9]:
        jax.tree.map(np.testing.assert_array_equal, next(later), expected)
        jax.tree.map(
            lambda a, b, c: np.testing.assert_array_equal(np.concatenate([a, b]), c), *map(next, halves), expected
        )


def test_every_phase_has_epochs_of_its_own(config: TaskExperiment) -> None:
    """And ids are as wide as the model's vocabulary asks for, whatever the tokenizer's."""
    (phase,) = config.phases
    phases = tuple(dataclasses.replace(phase, batch_size=size, steps=0, epochs=1) for size in (8, 4))
    wide = dataclasses.replace(config.model, vocab_size=70_000)
    two = dataclasses.replace(config, phases=phases, model=wide).completed(Path("none"))
    data, orders = two.load_data(), []
    for index, phase in enumerate(two.phases):
        batches = two.train_batches(data, index, start_step=0, process_index=0, process_count=1)
        rows = []
        for batch in itertools.islice(batches, phase.steps):
            assert {name: array.dtype for name, array in batch.items()} == {
                name: spec.dtype for name, spec in two.batch_spec(index).items()
            }
            rows += [ids.tobytes() for ids, weight in zip(batch["input_ids"], batch["weight"], strict=True) if weight]
        assert len(rows) == len(data.train[index])
        orders.append(rows)
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_a_tokenizer_is_learnt_where_there_is_none(config: TaskExperiment, tmp_path: Path) -> None:
    alone = dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=None))
    learnt = alone.tokenizer()
    assert learnt.get_vocab()["<s>"] == 0 and len(learnt.encode("jam").ids) <= 4
    assert alone.load_data().fingerprint != config.load_data().fingerprint
    half = write_records(tmp_path / "train.jsonl", [{"text": "a \ud83d b", "label": "good"}] * 11)
    damaged = dataclasses.replace(alone, data=dataclasses.replace(alone.data, path=str(half)))
    with pytest.raises(
        InputError, match="^'1' has '.*' at character 2 of a text, which is half of a character; expect"
    ):
        damaged.tokenizer()


def test_what_does_not_fit(config: TaskExperiment, tmp_path: Path) -> None:
    def changed(**values: Any) -> TaskExperiment:
        return dataclasses.replace(config, data=dataclasses.replace(config.data, **values))

    for experiment, message in (
        (changed(path=None), "data.path is None; expected where the data is, --config.data.path=PATH"),
        (changed(path=str(tmp_path / "none")), "data.path is '.*/none'; expected a file or directory that is there"),
        (changed(path=str(tmp_path)), "split is 'train', for which data.path '.*' has no file; expected train.jsonl"),
        (
            dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=300)),
            "model.vocab_size is 300; expected at least 3.., the number of the tokenizer's tokens",
        ),
        (
            dataclasses.replace(config, model=dataclasses.replace(config.model, sep_token_id=3)),
            "model.sep_token_id is 3; expected 2, that of the tokenizer",
        ),
    ):
        for use in (experiment.load_data, lambda experiment=experiment: train(experiment, tmp_path / "run")):
            with pytest.raises(InputError, match=f"^{message}"):
                use()
    assert not (tmp_path / "run").exists()


# ---- The step --------------------------------------------------------------------------------------------------------


class BagOfWords(nn.Module):
    """Logits of the mean of embeddings."""

    vocab_size: int

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array, deterministic: bool = True) -> HeadOutput:
        x = nn.Embed(self.vocab_size, 2)(input_ids)
        return HeadOutput(jnp.mean(x, axis=1, where=attention_mask[..., None]), EncoderOutput(x))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnHead(TextClassification):
    def head(self, model: LongformerConfig) -> nn.Module:
        return BagOfWords(model.vocab_size)


def test_the_loss_is_the_mean_over_rows(config: TaskExperiment) -> None:
    """Of those that count, however a batch is cut; under a head of the task's own."""
    own = dataclasses.replace(config, task=OwnHead(labels=("bad", "good")))
    data = own.load_data()
    batches = own.train_batches(data, 0, start_step=0, process_index=0, process_count=1)
    batch = next(b for b in batches if b["weight"].sum() == 45 % 8)
    params = own.init_params()
    table = np.asarray(params["Embed_0"]["embedding"])
    nats = []
    for ids, (label,) in zip(batch["input_ids"][: 45 % 8], batch["label"], strict=False):
        logits = table[ids[ids != 1]].mean(0)
        nats.append(np.log(np.exp(logits).sum()) - logits[label])
    for count in (1, 2):
        cut = jax.tree.map(lambda x, n=count: jnp.asarray(x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1)), batch)
        prepared = own.prepare(cut, jax.random.key(0))
        parts = (jax.tree.map(lambda x, i=i: x[i], prepared) for i in range(count))
        losses = [own.loss(0, params, part, jax.random.key(0))[0] for part in parts]
        assert float(sum(losses)) / count == pytest.approx(np.mean(nats), rel=1e-5)


@pytest.mark.parametrize("name", ["long", "short"])
def test_the_encoder_comes_from_init_and_the_head_from_the_seed(
    config: TaskExperiment, tmp_path: Path, name: str
) -> None:
    """Whether that is a Longformer, or a RoBERTa with a shorter position table."""
    model = config.model
    if name == "short":
        model = dataclasses.replace(model, attention_mode="full", global_projections=False, max_position_embeddings=18)
    save_pretrained(tmp_path / name, model, random_params(model, ForMaskedLM))
    begun = dataclasses.replace(config, init=str(tmp_path / name))
    params = begun.pretrained_params()
    found = load_pretrained(tmp_path / name, ForMaskedLM)[1]["longformer"]
    encoder, layers = params["longformer"], found["layers"]
    np.testing.assert_array_equal(encoder["word_embeddings"]["embedding"], found["word_embeddings"]["embedding"])
    expected = layers["query_global"] if name == "long" else layers["query"]
    jax.tree.map(np.testing.assert_array_equal, encoder["layers"]["query_global"], expected)
    positions, ours = found["position_embeddings"]["embedding"], encoder["position_embeddings"]["embedding"]
    np.testing.assert_array_equal(ours[:18], positions[:18])
    np.testing.assert_array_equal(ours[18:34], positions[2:18] if name == "short" else positions[18:])
    shapes = jax.tree.map(lambda x: x.shape, params)
    assert shapes == jax.tree.map(lambda x: x.shape, abstract_params(begun))
    other = dataclasses.replace(begun, seed=2).pretrained_params()
    jax.tree.map(np.testing.assert_array_equal, other["longformer"], encoder)
    assert (other["classifier"]["dense"]["kernel"] != params["classifier"]["dense"]["kernel"]).any()


def test_an_encoder_of_another_size(config: TaskExperiment, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "init", config.model, random_params(config.model, ForMaskedLM))
    wrong = dataclasses.replace(
        config, init=str(tmp_path / "init"), model=dataclasses.replace(config.model, hidden_size=32)
    )
    with pytest.raises(InputError, match="^init is '.*/init', whose hidden_size is 16; expected 32, model.hidden_size"):
        wrong.load_data()


def test_full_attention_with_projections_that_init_lacks(config: TaskExperiment, tmp_path: Path) -> None:
    full = dataclasses.replace(config.model, attention_mode="full")
    short = dataclasses.replace(full, global_projections=False)
    save_pretrained(tmp_path / "init", short, random_params(short, ForMaskedLM))
    begun = dataclasses.replace(config, init=str(tmp_path / "init"), model=full)
    with pytest.raises(InputError, match=r"^init is '.*', whose global_projections is False; expected True, model\.gl"):
        begun.load_data()


def test_operations_are_those_of_the_rows_without_padding(config: TaskExperiment) -> None:
    data = config.load_data()
    lengths = [len(data.train[0].row(row)["input_ids"]) for row in range(len(data.train[0]))]
    assert len(set(lengths)) > 5
    per_row = [length * encoder_flops_per_token(config.task_model, length) for length in lengths]
    assert config.flops_per_token(0, None, data) == pytest.approx(np.mean(per_row))


# ---- The best validation ---------------------------------------------------------------------------------------------


def test_which_validation_is_the_best() -> None:
    values = [0.5, 0.7, 0.7, 0.6, 0.8]
    records = [{"split": "validation", "step": 10 * i, "accuracy": value} for i, value in enumerate(values)]
    records.insert(2, {"split": "train", "step": 15, "loss": 9.0})
    best = Selection.of(CONFIG, records[:5])
    assert (best.best_step, best.best_value, best.since_best, best.steps) == (10, 0.7, 2, {0, 10, 20, 30})
    assert best.is_over(2) and not best.is_over(3) and not best.is_over(None)
    assert best.add(40, {"accuracy": 0.8}) and best.since_best == 0 and not best.is_over(2)
    smallest = Selection("loss", largest=False)
    assert [smallest.add(i, {"loss": value}) for i, value in enumerate((3.0, 2.0, 2.5, float("nan")))] == [
        True,
        True,
        False,
        False,
    ]
    first, *rest = float("nan"), float("nan"), 2.0, float("nan"), 3.0, 1.0
    broken = Selection("loss", largest=False)
    assert broken.add(0, {"loss": first})
    assert [broken.add(i, {"loss": value}) for i, value in enumerate(rest, 1)] == [False, True, False, False, True]


def test_phases_in_steps_need_no_epochs() -> None:
    assert TaskPhase(sequence_length=8, learning_rate=1.0, batch_size=8, steps=3).extent == ("steps", 3)
    assert CONFIG.phases[0].extent == ("epochs", 3)
