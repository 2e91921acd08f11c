"""The masked-LM experiment: its configuration, its data and its step, against the same things written out."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from longformer_jax import ForMaskedLM, InputError
from longformer_jax.training import (
    CharLMExperiment,
    ExperimentConfig,
    MaskedLMExperiment,
    MeshConfig,
    OptimizerConfig,
    TokenDataConfig,
    train,
)
from longformer_jax.training.resumption import check_resumes
from longformer_jax.training.sharding import make_mesh, put_batch
from longformer_jax.training.step import abstract_params, abstract_state, compile_train_step, init_state
from longformer_jax.weights import load_pretrained, roberta_to_longformer, save_pretrained
from tests.training import tiny
from tests.training.tiny_masked import CONFIG, with_text

MESH = make_mesh(MeshConfig())
# Without dropout, whose masks follow from how a batch is cut.
DRY = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(CONFIG.model, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    optimizer=OptimizerConfig(eps=1e-3, clip_norm=None),
)


def rows_of_tokens(count: int = 8, length: int = 32) -> np.ndarray:
    """<s>, tokens, </s>, and padding after it in every second row; uint16."""
    rng = np.random.default_rng(0)
    rows = rng.integers(5, 300, size=(count, length)).astype(np.uint16)
    rows[:, 0] = 0
    for i, row in enumerate(rows):
        end = length - 1 - (i % 2) * 5
        row[end], row[end + 1 :] = 2, 1
    return rows


# ---- Configuration ---------------------------------------------------------------------------------------------------


def test_round_trip_through_config_dict_and_json(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        init="somewhere",
        positions="random",
        data=TokenDataConfig(path="a", validation_path="b", tokenizer="c", cache_dir="d"),
        optimizer=OptimizerConfig(warmup_steps=3, decay="polynomial", power=3.0, clip_norm=None, train_only="position"),
    )
    values = config.to_config_dict()
    assert ExperimentConfig.from_config_dict(values) == config
    config.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["objective"] == "masked_lm"
    assert ExperimentConfig.load(tmp_path) == MaskedLMExperiment.load(tmp_path) == config
    values.init, values.optimizer.clip_norm, values.data.path = "elsewhere", 0.5, "text"
    changed = MaskedLMExperiment.from_config_dict(values)
    assert (changed.init, changed.optimizer.clip_norm, changed.data.path) == ("elsewhere", 0.5, "text")


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    CONFIG.save(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: objective is 'masked_lm'; expected char_lm$"):
        CharLMExperiment.load(tmp_path)
    with pytest.raises(InputError, match=r"^objective is 'translation'; expected one of char_lm, masked_lm, task$"):
        ExperimentConfig.from_dict(CONFIG.to_dict() | {"objective": "translation"})
    with pytest.raises(
        InputError, match=r"another configuration: objective \('char_lm', now 'masked_lm'\) changed; exp"
    ):
        check_resumes(CONFIG, tiny.CONFIG, 20)
    without = tiny.CONFIG.to_dict()  # as workdirs were written before there were other kinds
    del without["objective"]
    assert ExperimentConfig.from_dict(without) == tiny.CONFIG


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("positions", "sinusoidal", r"positions is 'sinusoidal'; expected one of copied, random"),
        ("mask_probability", 0, r"mask_probability is 0\.0; expected a number between 0 and 1"),
        ("mask_probability", 1, r"mask_probability is 1\.0; expected a number between 0 and 1"),
        ("mask_token_id", 300, r"mask_token_id is 300; expected ids from 0 to 299, as model\.vocab_size is 300"),
        ("special_token_ids", [0, -1], r"special_token_ids is \(0, -1\); expected ids from 0 to 299"),
        ("phases.1.sequence_length", 65, r"phases\[1\]\.sequence_length is 65; expected at most 64, model\.max_length"),
        ("phases.0.windows", [4, 8], r"phases\[0\]\.windows is \[4, 8\]; expected no such key, but one of sequence_le"),
        (
            "model.attention_window",
            [8],
            r"model\.attention_window has 1 entries; expected one for each of the 2 layers",
        ),
        ("model.hidden_size", 15, r"model\.hidden_size is 15; expected a multiple of num_attention_heads, 2"),
        ("data.source", "enwik8", r"data\.source is 'enwik8'; expected no such key, but one of path, validation_path"),
        ("init", 3, r"init is 3; expected text"),
        ("optimizer.warmup_steps", 8, r"optimizer\.warmup_steps is 8; expected less than the 8 steps of phases\[1\]"),
        ("optimizer.power", 0, r"optimizer\.power is 0\.0; expected a positive number"),
        ("optimizer.train_only", "(", r"optimizer\.train_only is '\('; expected a regular expression \(missing \)"),
    ],
)
def test_bad_input(path: str, value: Any, message: str) -> None:
    values = json.loads(json.dumps(CONFIG.to_dict()))
    *parents, last = path.split(".")
    target = values
    for key in parents:
        target = target[int(key) if key.isdecimal() else key]
    target[last] = value
    with pytest.raises(InputError, match=f"^{message}"):
        ExperimentConfig.from_dict(values)


def test_float16_is_not_trained(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dtype="float16"))
    with pytest.raises(InputError, match=r"^model\.dtype is 'float16'; expected float32 or bfloat16, as training does"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_training_nothing() -> None:
    config = dataclasses.replace(CONFIG, optimizer=OptimizerConfig(train_only="positoin"))
    message = r"^optimizer\.train_only is 'positoin'; expected a match in a parameter's path"
    with pytest.raises(InputError, match=message):
        abstract_state(config, MESH)


# ---- Data ------------------------------------------------------------------------------------------------------------


def test_data_of_each_phase(tmp_path: Path) -> None:
    config = with_text(tmp_path)
    data = config.load_data()
    assert data.name == "text"
    for phase, length in enumerate((32, 64)):
        train, validation = data.rows(phase, "train"), data.rows(phase, "validation")
        assert train.shape[1] == validation.shape[1] == length
        assert len(train) > 2 * len(validation) > 0
        position = {"process_index": 1, "process_count": 2}
        batches = config.train_batches(data, phase, start_step=3, **position)
        batch, spec = next(batches), config.batch_spec(phase)
        assert (2 * len(batch), batch.shape[1]) == spec.shape and batch.dtype == spec.dtype == np.uint16
        np.testing.assert_array_equal(next(config.train_batches(data, phase, start_step=3, **position)), batch)
        known = {row.tobytes() for row in np.asarray(train)}
        assert all(row.tobytes() in known for row in batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": 5}, r"mask_token_id is 5; expected 4, that of the tokenizer"),
        ({"special_token_ids": (0, 1, 2)}, r"special_token_ids is \(0, 1, 2\); expected \(0, 1, 2, 3, 4\), those of"),
        ({"model": {"bos_token_id": 7}}, r"model\.bos_token_id is 7; expected 0, that of the tokenizer"),
        ({"model": {"vocab_size": 280}}, r"model\.vocab_size is 280; expected at least 300, the number of the tokeniz"),
        ({"data": {"path": "none"}}, r"data: paths has 'none', which matches no file"),
        ({"data": {"validation_fraction": 0.0}}, r"data\.validation_fraction is 0\.0, which leaves text wi"),
        ({"data": {"tokenizer": "no/such/model"}}, r"source is 'no/such/model', which is no directory"),
    ],
)
def test_data_that_does_not_fit(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = with_text(tmp_path)
    config.tokenizer().save(str(tmp_path / "tokenizer.json"))
    parts = {
        "data": dataclasses.replace(
            config.data, **({"tokenizer": str(tmp_path / "tokenizer.json")} | change.get("data", {}))
        ),
        "model": dataclasses.replace(config.model, **change.get("model", {})),
    }
    with pytest.raises(InputError, match=f"^{message}"):
        dataclasses.replace(config, **(change | parts)).load_data()


# ---- Masks -----------------------------------------------------------------------------------------------------------


def test_targets_are_what_was_hidden() -> None:
    rows = rows_of_tokens(200)
    masked = jax.device_get(jax.jit(lambda rows: CONFIG.mask_rows(rows, np.arange(200), key=jax.random.key(0)))(rows))
    np.testing.assert_array_equal(masked["attention_mask"], rows != 1)
    counts = masked["weights"].sum(axis=1).astype(int)
    for row, inputs, positions, targets, weights, count in zip(
        rows, masked["input_ids"], masked["positions"], masked["targets"], masked["weights"], counts, strict=True
    ):
        np.testing.assert_array_equal(weights, np.arange(len(weights)) < count)
        chosen = positions[:count]
        assert (np.diff(chosen) > 0).all()
        np.testing.assert_array_equal(targets[:count], row[chosen])
        assert not np.isin(targets[:count], CONFIG.special_token_ids).any()
        assert set(np.flatnonzero(inputs != row)) <= set(chosen)
    ordinary = ~np.isin(rows, CONFIG.special_token_ids)
    assert counts.sum() == pytest.approx(0.15 * ordinary.sum(), rel=0.1)
    assert (masked["input_ids"] == 4).sum() == pytest.approx(0.8 * counts.sum(), rel=0.1)


def test_masks_of_a_row_do_not_depend_on_its_company() -> None:
    rows, index = rows_of_tokens(), np.arange(8)
    whole = CONFIG.validation_rows(rows, index)
    part = CONFIG.validation_rows(rows[[5, 2]], index[[5, 2]])
    jax.tree.map(lambda all_rows, two: np.testing.assert_array_equal(all_rows[[5, 2]], two), whole, part)
    other = dataclasses.replace(CONFIG, seed=1).validation_rows(rows, index)
    assert not np.array_equal(whole["input_ids"], other["input_ids"])


def test_masks_of_a_step_do_not_depend_on_microbatches() -> None:
    rows, key = rows_of_tokens(), jax.random.key(3)
    prepare = jax.jit(CONFIG.prepare)
    whole, cut = (jax.device_get(prepare(put_batch(rows, count, MESH), key)) for count in (1, 4))
    for name in ("input_ids", "positions", "targets"):
        np.testing.assert_array_equal(cut[name].swapaxes(0, 1).reshape(whole[name][0].shape), whole[name][0])
    # Weights are such that the mean over microbatches of weighted sums is the mean over the targets of the batch.
    assert whole["weights"].sum() == pytest.approx(1) and cut["weights"].sum() == pytest.approx(4)
    assert len(np.unique(cut["weights"])) == 2
    other = jax.device_get(prepare(put_batch(rows, 1, MESH), jax.random.key(4)))
    assert not np.array_equal(other["input_ids"], whole["input_ids"])


# ---- The step --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_step_descends_the_mean_over_all_targets() -> None:
    """Written out with the logits of all tokens; and the same however the batch is cut."""
    rows = rows_of_tokens()
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(DRY, MESH))
    initial = jax.device_get(init_state(DRY, MESH))
    key = jax.random.fold_in(jax.random.key(DRY.seed), 0)
    masked = jax.device_get(jax.jit(DRY.prepare)(put_batch(rows, 1, MESH), key))
    is_target = np.zeros(rows.shape, bool)
    for i in range(len(rows)):
        is_target[i, masked["positions"][0, i][masked["weights"][0, i] > 0]] = True

    @jax.jit
    def expected(params: Any) -> tuple[jax.Array, Any]:
        def loss_fn(params: Any) -> jax.Array:
            logits: Any = ForMaskedLM(DRY.trained_model).apply({"params": params}, masked["input_ids"][0], rows != 1)
            log_p = jax.nn.log_softmax(logits.logits)
            nats = -jnp.take_along_axis(log_p, jnp.asarray(rows, jnp.int32)[..., None], -1)[..., 0]
            return jnp.sum(nats * is_target) / is_target.sum()

        return jax.value_and_grad(loss_fn)(params)

    loss, grads = expected(initial["params"])
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    for accumulate in (1, 4):
        step = compile_train_step(DRY, 0, accumulate, MESH)
        state, metrics = step(jax.device_put(initial, shardings), put_batch(rows, accumulate, MESH))
        assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
        assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
        # Adam's first moment is a tenth of the gradient, as nothing is clipped.
        first = jax.tree.map(lambda m: 10 * np.asarray(m), adam_moments(state))
        jax.tree.map(lambda ours, g: np.testing.assert_allclose(ours, g, atol=2e-5 * norm), first, grads)


def adam_moments(state: Any) -> Any:
    """Adam's means of the gradients, a tree like that of the parameters that are trained."""
    parts = jax.tree.leaves(state["opt_state"], is_leaf=lambda part: hasattr(part, "mu"))
    return next(part.mu for part in parts if hasattr(part, "mu"))


@pytest.mark.slow
def test_positions_alone() -> None:
    config = dataclasses.replace(DRY, optimizer=OptimizerConfig(train_only="position_embeddings", weight_decay=0.1))
    initial = jax.device_get(init_state(config, MESH))
    # A zero that adding zero would change.
    initial["params"]["lm_head"]["bias"] = np.full(300, -0.0, np.float32)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, MESH))
    step = compile_train_step(config, 0, 1, MESH)
    state, metrics = step(jax.device_put(initial, shardings), put_batch(rows_of_tokens(), 1, MESH))
    assert float(metrics["grad_norm"]) > 0
    for (path, before), after in zip(
        jax.tree_util.tree_leaves_with_path(initial["params"]), jax.tree.leaves(state["params"]), strict=True
    ):
        same = before.tobytes() == np.asarray(after).tobytes()
        assert same != ("position_embeddings" in jax.tree_util.keystr(path)), path
    # Only they have moments.
    assert [leaf.shape for leaf in jax.tree.leaves(adam_moments(state))] == [(66, 16)]


# ---- From a pretrained model -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa for 32 tokens, as a run leaves it."""
    folder = tmp_path_factory.mktemp("short")
    model = dataclasses.replace(
        CONFIG.model, max_position_embeddings=34, attention_mode="full", global_projections=False, attention_window=512
    )
    config = with_text(folder, dataclasses.replace(CONFIG, model=model, phases=CONFIG.phases[:1]))
    config.write_model(folder / "model", init_state(config, MESH)["params"], phase=0)
    return folder / "model"


def long_params(short: Path, **changes: Any) -> Any:
    return jax.device_get(dataclasses.replace(CONFIG, init=str(short), **changes).pretrained_params())


def test_init_is_converted(short: Path) -> None:
    _, params = roberta_to_longformer(
        *load_pretrained(short, ForMaskedLM), max_length=64, attention_window=8, positions="copied"
    )
    for name in ("query", "key", "value"):
        del params["longformer"]["layers"][f"{name}_global"]
    copied = long_params(short)
    jax.tree.map(np.testing.assert_array_equal, copied, params)
    assert jax.tree.map(np.shape, copied) == jax.tree.map(lambda leaf: leaf.shape, abstract_params(CONFIG))
    state = init_state(dataclasses.replace(CONFIG, init=str(short)), MESH)
    jax.tree.map(np.testing.assert_array_equal, state["params"], copied)
    assert int(state["step"]) == 0


@pytest.mark.parametrize("trained", [True, False])
def test_global_projections_of_init_are_kept(short: Path, tmp_path: Path, trained: bool) -> None:
    model, params = roberta_to_longformer(*load_pretrained(short, ForMaskedLM), max_length=64, attention_window=8)
    layers = params["longformer"]["layers"]
    if trained:
        layers["value_global"] = {**layers["value_global"], "bias": layers["value_global"]["bias"] + 0.5}
    save_pretrained(tmp_path / "init", model, params)
    shutil.copyfile(short / "tokenizer.json", tmp_path / "init" / "tokenizer.json")
    config, workdir = with_text(tmp_path, dataclasses.replace(CONFIG, init=str(tmp_path / "init"))), tmp_path / "run"
    workdir.mkdir()
    config.save_data(workdir, config.load_data())
    shutil.rmtree(tmp_path / "init")  # a run needs it no more
    config.save_data(workdir, config.load_data(workdir))  # as when it goes on
    after = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), abstract_params(config))
    config.write_model(tmp_path / "out", after, phase=1, workdir=workdir)
    written = load_pretrained(tmp_path / "out", ForMaskedLM)[1]["longformer"]["layers"]
    for name in ("query", "key", "value"):
        expected = layers[f"{name}_global"] if trained else written[name]
        jax.tree.map(np.testing.assert_array_equal, written[f"{name}_global"], expected)
        assert float(written[name]["kernel"].min()) == 1


def test_copied_and_random_positions_differ_in_new_rows(short: Path) -> None:
    copied, random = long_params(short), long_params(short, positions="random")
    tables = [params["longformer"].pop("position_embeddings")["embedding"] for params in (copied, random)]
    jax.tree.map(np.testing.assert_array_equal, copied, random)
    np.testing.assert_array_equal(tables[0][:34], tables[1][:34])
    np.testing.assert_array_equal(tables[0][34:], tables[0][2:34])
    assert (tables[0][34:] != tables[1][34:]).all()


def test_tokenizer_comes_with_init(short: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("xyz xyz\n\n" * 100)
    data = TokenDataConfig(path=str(tmp_path / "other"), validation_fraction=0.2, cache_dir=str(tmp_path))
    vocabulary = json.loads((short / "tokenizer.json").read_text())["model"]["vocab"]
    assert len(vocabulary) == 300 and "xyz" not in vocabulary
    assert dataclasses.replace(CONFIG, init=str(short), data=data).tokenizer().get_vocab() == vocabulary
    assert "xyz" in dataclasses.replace(CONFIG, data=data).tokenizer().get_vocab()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"init is '.*/model', whose hidden_size is 16; expected 32, model\.hidden_size"),
        ({"hidden_act": "relu"}, r"init is '.*/model', whose hidden_act is 'gelu'; expected 'relu', model\.hidden_act"),
        ({"max_position_embeddings": 33}, r"init is .*, whose attention_mode is 'full'; expected 'sliding_window'"),
        ({"attention_mode": "full"}, r"init is .*, whose max_position_embeddings is 34; expected 66, model\.max_pos"),
    ],
)
def test_init_of_another_model(short: Path, change: dict[str, Any], message: str) -> None:
    phase = dataclasses.replace(CONFIG.phases[0], sequence_length=16)
    config = dataclasses.replace(CONFIG, init=str(short), phases=(phase,))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **change))
    with pytest.raises(InputError, match=f"^{message}"):
        config.pretrained_params()


def test_init_with_another_output_projection(short: Path) -> None:
    untied = dataclasses.replace(CONFIG.model, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"^init is '.*/model', whose tie_word_embeddings is True; expected False, m"):
        dataclasses.replace(CONFIG, init=str(short), model=untied).load_data()


def test_init_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^source is '/none', which is no directory"):
        dataclasses.replace(CONFIG, init="/none").pretrained_params()
