"""Whole masked-LM runs: what they report and leave, going on after a stop, what comes out, other devices."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from longformer_jax import ForMaskedLM, InputError
from longformer_jax.data import load_corpus
from longformer_jax.data.tokenizer_training import learn_tokenizer
from longformer_jax.evaluation import evaluate, evaluate_model, sample_text
from longformer_jax.training import (
    ExperimentConfig,
    MaskedLMExperiment,
    export_model,
    restore_params,
    train,
)
from longformer_jax.training.metrics import read_metrics
from longformer_jax.training.sharding import state_shardings
from longformer_jax.training.step import abstract_params
from longformer_jax.weights import load_pretrained, load_tokenizer, save_pretrained
from tests.training.tiny_masked import CONFIG, with_text

ONE_PHASE = dataclasses.replace(CONFIG, phases=CONFIG.phases[:1], eval_interval=8)


def digest(state: Any) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> MaskedLMExperiment:
    return with_text(tmp_path_factory.mktemp("text"), ONE_PHASE)


@pytest.fixture(scope="module")
def finished(config: MaskedLMExperiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The workdir of an uninterrupted run, and the digest of its last state."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, digest(train(config, workdir))


def scores(workdir: Path, split: str) -> dict[int, float]:
    return {r["step"]: r["bpc"] for r in read_metrics(workdir / "metrics.jsonl") if r["split"] == split}


def test_what_a_run_leaves(config: MaskedLMExperiment, finished: tuple[Path, str]) -> None:
    workdir, _ = finished
    expected = {
        "config.json",
        "data.json",
        "tokenizer.json",
        "checksums.json",
        "checkpoints",
        "metrics.jsonl",
        "curve.png",
        "model",
    }
    assert {path.name for path in workdir.iterdir()} - {"tensorboard"} == expected
    assert ExperimentConfig.load(workdir) == config
    train_records = [r for r in read_metrics(workdir / "metrics.jsonl") if r["split"] == "train"]
    assert [(r["step"], r["tokens"]) for r in train_records] == [(4, 1024), (8, 2048), (12, 3072)]
    assert set(scores(workdir, "validation")) == {0, 8, 12}


def test_it_learns(finished: tuple[Path, str]) -> None:
    train_bpc, validation = (scores(finished[0], split) for split in ("train", "validation"))
    assert validation[0] == pytest.approx(np.log2(300), abs=0.2)
    assert validation[12] < validation[8] < validation[0] - 0.2
    assert train_bpc[12] < train_bpc[4] - 0.2


def test_going_on_gives_the_same_bits(
    config: MaskedLMExperiment,
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(5)
    assert int(train(config, tmp_path)["step"]) == 5
    output = capsys.readouterr().out
    assert "before training" not in output and not (tmp_path / "model").exists()
    monkeypatch.undo()
    assert digest(train(config, tmp_path)) == finished[1]
    assert scores(tmp_path, "validation") == scores(finished[0], "validation")
    first, last = (scores(tmp_path, "validation")[step] for step in (0, 12))
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"wrote the model to {tmp_path / 'model'}; load_pretrained({str(tmp_path / 'model')!r}, ForMaskedLM) reads it",
        f"validation bpc {first:.4f} before training, {last:.4f} after",
    ]


@pytest.mark.slow
def test_a_phase_is_added_to_a_run(config: MaskedLMExperiment, finished: tuple[Path, str], tmp_path: Path) -> None:
    """Of longer rows; the others are still seen to be the same."""
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    (phase,) = config.phases
    longer = dataclasses.replace(phase, sequence_length=2 * phase.sequence_length, steps=1, sequences_per_device=None)
    with_longer = dataclasses.replace(config, phases=(phase, longer), eval_interval=0)
    assert int(train(with_longer, workdir)["step"]) == config.total_steps + 1
    told = json.loads((workdir / "data.json").read_text())
    assert told["parts"].keys() == {str(each.sequence_length) for each in (phase, longer)}
    told["parts"][str(phase.sequence_length)] = "another"
    (workdir / "data.json").write_text(json.dumps(told))
    with pytest.raises(
        InputError, match="^data is .*, which has changed since the run in '.*' began; expected the sam"
    ):
        train(with_longer, workdir)


def test_a_run_that_was_killed_at_its_end_still_leaves_its_model(
    config: MaskedLMExperiment, finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(workdir / "model")
    (workdir / ".model.partial").mkdir()
    (workdir / ".model.partial" / "config.json").write_text("{}")
    train(dataclasses.replace(config, eval_interval=0), workdir)
    assert [path.name for path in sorted(workdir.glob("*model*"))] == ["model"]
    for path in (finished[0] / "model").iterdir():
        assert (workdir / "model" / path.name).read_bytes() == path.read_bytes()
    before, after = (scores(finished[0], "validation")[step] for step in (0, 12))
    assert f"validation bpc {before:.4f} before training, {after:.4f} after" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_needs_nothing_but_its_workdir_and_its_text(
    config: MaskedLMExperiment,
    finished: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: Callable[[int], None],
) -> None:
    """It goes on, is evaluated and exported when the model that it began with is gone."""
    init = shutil.copytree(finished[0] / "model", tmp_path / "init")
    from_init = dataclasses.replace(config, init=str(init))
    stop_after(5)
    train(from_init, tmp_path / "run")
    monkeypatch.undo()
    shutil.rmtree(init)
    export_model(tmp_path / "run", tmp_path / "exported")
    assert int(train(from_init, tmp_path / "run")["step"]) == 12
    assert evaluate(tmp_path / "run", limit=6).bits_per_token == pytest.approx(
        scores(tmp_path / "run", "validation")[12], rel=1e-5
    )


def test_a_text_that_has_changed(config: MaskedLMExperiment, finished: tuple[Path, str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text(Path(str(config.data.path)).read_text().replace("First", "Second"))
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(text)))
    values = json.loads((workdir / "config.json").read_text())
    values["data"]["path"] = str(text)
    (workdir / "config.json").write_text(json.dumps(values))
    for use in (lambda: train(changed, workdir), lambda: evaluate(workdir)):
        with pytest.raises(InputError, match="^data is text, which has changed since the run in '.*/run' began; expec"):
            use()
    for content in ("{", "[" * 200_000, "{}"):
        (workdir / "data.json").write_text(content)
        with pytest.raises(InputError, match=r"^.*data\.json is damaged"):
            evaluate(workdir)


def test_export_takes_no_directory_that_is_used(finished: tuple[Path, str]) -> None:
    before = (finished[0] / "config.json").read_bytes()
    with pytest.raises(InputError, match="^directory is '.*', which is there already; expected a new or empty dir"):
        export_model(finished[0], finished[0])
    assert (finished[0] / "config.json").read_bytes() == before


@pytest.mark.slow
def test_full_attention_is_exported_too(config: MaskedLMExperiment, tmp_path: Path) -> None:
    """As a Longformer with projections of global tokens, which its config asks for."""
    model = dataclasses.replace(config.model, attention_mode="full")
    phase = dataclasses.replace(config.phases[0], steps=1)
    train(dataclasses.replace(config, model=model, phases=(phase,), eval_interval=0), tmp_path)
    found, params = load_pretrained(tmp_path / "model", ForMaskedLM)
    assert (found.attention_mode, found.global_projections) == ("full", True)
    assert "query_global" in params["longformer"]["layers"]


@pytest.mark.slow
def test_starting_anew_forgets_the_old_beginning(
    config: MaskedLMExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was killed before its first checkpoint has left a validation of step 0."""
    (tmp_path / "metrics.jsonl").write_text('{"split": "validation", "step": 0, "tokens": 0, "bpc": 1.0}\n')
    short = dataclasses.replace(config, phases=(dataclasses.replace(config.phases[0], steps=2),))
    short.save(tmp_path)
    train(short, tmp_path)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == [0, 2, 2]
    assert scores(tmp_path, "validation")[0] > 7


def test_the_model_can_be_loaded(config: MaskedLMExperiment, finished: tuple[Path, str]) -> None:
    directory = finished[0] / "model"
    model, params = load_pretrained(directory, ForMaskedLM)
    assert dataclasses.replace(model, dtype=config.model.dtype) == config.model
    layers = params["longformer"]["layers"]
    for name in ("query", "key", "value"):
        jax.tree.map(np.testing.assert_array_equal, layers.pop(f"{name}_global"), layers[name])
    jax.tree.map(np.testing.assert_array_equal, params, restore_params(finished[0]))
    assert load_tokenizer(directory).get_vocab() == config.tokenizer().get_vocab()


def test_the_model_of_an_earlier_checkpoint(finished: tuple[Path, str], tmp_path: Path) -> None:
    export_model(finished[0], tmp_path / "model", step=10)
    _, params = load_pretrained(tmp_path / "model", ForMaskedLM)
    ours = restore_params(finished[0], 10)["lm_head"]
    jax.tree.map(np.testing.assert_array_equal, params["lm_head"], ours)
    assert digest(ours) != digest(restore_params(finished[0])["lm_head"])


# ---- Evaluation ------------------------------------------------------------------------------------------------------


def test_evaluation_has_the_figures_of_training(finished: tuple[Path, str]) -> None:
    """On the same sequences under the same masks, however many are taken at once."""
    workdir, _ = finished
    result = evaluate(workdir, limit=6, batch_size=4)
    assert result.bits_per_token == pytest.approx(scores(workdir, "validation")[12], rel=1e-5)
    assert (result.split, result.step, result.tokens) == ("validation", 12, 6 * 32)
    assert 0.05 * result.tokens < result.masked < 0.25 * result.tokens
    assert str(result).startswith(f"validation, step 12: {result.bits_per_token:.4f} bits per masked token over ")
    whole = evaluate(workdir, split="train", step=10)
    assert whole.tokens > 10 * result.tokens and whole.step == 10


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("documents") / "documents"
    path.write_bytes(bytes(load_corpus("tiny_shakespeare").split("validation")[:3000]))
    return path


def test_a_model_that_is_no_run_is_scored_as_one(finished: tuple[Path, str], documents: Path) -> None:
    model, limit = str(finished[0] / "model"), CONFIG.eval_sequences
    result = evaluate_model(model, data=str(documents), sequence_length=32, limit=limit)
    assert str(result).startswith(f"documents: {result.bits_per_token:.4f} bits per masked token over ")
    of_the_run = evaluate(finished[0], data=str(documents), limit=limit)
    assert (of_the_run.split, of_the_run.step) == ("documents", 12)
    assert of_the_run.bits_per_token == result.bits_per_token


@pytest.mark.slow
def test_documents_are_scored_as_a_run_validates_on_them(
    config: MaskedLMExperiment, finished: tuple[Path, str], documents: Path, tmp_path: Path
) -> None:
    """The same model, documents and masks; wherever the documents lie."""
    documents = Path(shutil.copy(documents, tmp_path))
    model, run = str(finished[0] / "model"), tmp_path / "run"
    data = dataclasses.replace(config.data, validation_path=str(documents))
    phase = dataclasses.replace(config.phases[0], steps=2)
    short = dataclasses.replace(config, data=data, init=model, phases=(phase,))
    train(short, run)
    result = evaluate_model(model, data=str(documents), sequence_length=32, limit=short.eval_sequences)
    assert result.bits_per_token == pytest.approx(scores(run, "validation")[0], rel=1e-5)
    moved = documents.rename(tmp_path / "moved")
    message = (
        r"^data: paths has '.*/documents', which matches no file; expected files with text \(if validation_path has "
        r"moved, say to where by --config\.data\.validation_path of train\.py, or have eval\.py score all of it by "
        r"--data\)$"
    )
    with pytest.raises(InputError, match=message):
        evaluate(run)
    train(dataclasses.replace(short, data=dataclasses.replace(data, validation_path=str(moved))), run)
    assert evaluate(run).bits_per_token == evaluate(run, data=str(moved)).bits_per_token
    longer = evaluate_model(model, data=str(moved))
    assert longer.tokens % config.model.max_length == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, r"split is 'test'; expected one of train, validation"),
        (
            {"protocol": "stream"},
            r"protocol is 'stream', but '.*' holds a masked_lm run; expected no options but data, data_path, split",
        ),
        (
            {"stride": 5},
            r"stride is 5, but '.*' holds a masked_lm run; expected no options but data, data_path, split, step,",
        ),
        ({"limit": 0}, r"limit is 0; expected an integer >= 1"),
        ({"batch_size": True}, r"batch_size is True; expected an integer >= 1"),
        ({"step": 7}, r"workdir is '.*', with checkpoints \[10, 12\]; expected checkpoint 7 in it"),
    ],
)
def test_evaluation_refuses(finished: tuple[Path, str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(finished[0], **options)


@pytest.mark.slow
def test_no_masked_tokens(config: MaskedLMExperiment, tmp_path: Path) -> None:
    rare = dataclasses.replace(config, mask_probability=1e-9)
    with pytest.raises(
        InputError, match="^mask_probability is 1e-09, by which no token of the 6 sequences to score is"
    ):
        train(rare, tmp_path)


def test_a_model_without_a_head_is_not_scored(
    config: MaskedLMExperiment, finished: tuple[Path, str], tmp_path: Path
) -> None:
    model, params = load_pretrained(finished[0] / "model", ForMaskedLM)
    save_pretrained(tmp_path / "encoder", model, params["longformer"])
    with pytest.raises(InputError, match="^model is '.*/encoder', which has no head to predict masked tokens; expect"):
        evaluate_model(str(tmp_path / "encoder"), data=str(config.data.path))


def test_a_tokenizer_of_another_model_is_not_scored(
    config: MaskedLMExperiment, finished: tuple[Path, str], tmp_path: Path
) -> None:
    model = shutil.copytree(finished[0] / "model", tmp_path / "model")
    (model / "checksums.json").unlink()
    learn_tokenizer(str(config.data.path), 310).save(str(model / "tokenizer.json"))
    with pytest.raises(InputError, match=r"^model\.vocab_size is 300; expected at least 310, the number of the token"):
        evaluate_model(str(model), data=str(config.data.path))


def test_no_sample(finished: tuple[Path, str]) -> None:
    with pytest.raises(InputError, match=r"^sample is 10, but '.*' holds a masked_lm run; expected a char_lm run$"):
        sample_text(finished[0], 10)


# ---- Devices ---------------------------------------------------------------------------------------------------------


def test_matrices_and_tables_are_split() -> None:
    mesh: Any = jax.sharding.AbstractMesh((1, 4, 1, 1), ("data", "fsdp", "sequence", "tensor"))
    params = abstract_params(CONFIG)
    specs = jax.tree.map(lambda sharding: sharding.spec, state_shardings(mesh, params))
    split = {
        jax.tree_util.keystr(path, simple=True, separator="/"): params_size(leaf)
        for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(specs), strict=True)
        if "fsdp" in spec
    }
    layers = {
        f"longformer/layers/{name}/kernel" for name in ("query", "key", "value", "attention_out", "mlp_in", "mlp_out")
    }
    tables = {f"longformer/{name}_embeddings/embedding" for name in ("word", "position")}
    assert split.keys() == layers | tables
    assert sum(split.values()) > 0.85 * sum(map(params_size, jax.tree.leaves(params)))


def params_size(leaf: Any) -> int:
    return int(np.prod(leaf.shape))


SCORES = """
import dataclasses, json, sys
from pathlib import Path
import jax
data, fsdp, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
jax.config.update("jax_num_cpu_devices", data * fsdp)
from longformer_jax.training import MeshConfig, train
from longformer_jax.training.metrics import read_metrics
from tests.training.tiny_masked import CONFIG, with_text
# Not accumulated, so that microbatches and with them dropout are the same on any number of devices.
phase = dataclasses.replace(CONFIG.phases[0], sequences_per_device=None)
config = dataclasses.replace(CONFIG, mesh=MeshConfig(data=data, fsdp=fsdp), phases=(phase,), log_interval=1)
workdir = folder / f"{data}x{fsdp}"
state = train(with_text(folder, config), workdir)
table = state["params"]["longformer"]["word_embeddings"]["embedding"]
print(json.dumps({
    "bpc": [record["bpc"] for record in read_metrics(workdir / "metrics.jsonl")],
    "parts": table.size // table.addressable_shards[0].data.size,
}))
"""


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one(run_python: Callable, tmp_path: Path) -> None:
    found = {}
    for data, fsdp in ((1, 1), (2, 4)):
        result = run_python("-W", "error", "-c", SCORES, data, fsdp, tmp_path)
        assert result.returncode == 0, result.stderr
        found[data, fsdp] = json.loads(result.stdout.splitlines()[-1])
        assert found[data, fsdp]["parts"] == fsdp
        assert (tmp_path / f"{data}x{fsdp}" / "model" / "config.json").exists()
        np.testing.assert_allclose(found[data, fsdp]["bpc"], found[1, 1]["bpc"], rtol=2e-5)
    assert len(found[1, 1]["bpc"]) == 12 + 3
    models = [load_pretrained(tmp_path / name / "model", ForMaskedLM)[1] for name in ("1x1", "2x4")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *models)
