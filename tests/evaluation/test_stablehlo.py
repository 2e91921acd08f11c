"""Exported models, run where there is nothing but JAX: they compute what the library does."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer

from longformer_jax import (
    CharLM,
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    InputError,
    Longformer,
    save_pretrained,
)
from longformer_jax.checkpoints import Checkpoints
from longformer_jax.checksums import recording
from longformer_jax.evaluation.stablehlo import export_stablehlo
from longformer_jax.scripts.export import run as export
from longformer_jax.tasks import Task
from longformer_jax.training import MeshConfig
from longformer_jax.training.masked_lm import GLOBAL_FILE
from longformer_jax.training.sharding import make_mesh
from longformer_jax.training.step import init_state
from longformer_jax.weights import load_tokenizer
from longformer_jax.weights.tensor_files import write_tensors
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.models import encoders, small
from tests.training import tiny, tiny_masked, tiny_task

NO_MORE = {"jax", "jaxlib", "numpy", "ml_dtypes", "opt_einsum", "scipy", "flatbuffers"}
# Runs the program of each README.txt, then the functions on given inputs; says what it has imported.
PROGRAM = """
import sys
class Only:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *arguments):
        if name[0] == "_" or name.partition(".")[0] in sys.stdlib_module_names | {allowed}:
            return self.finder.find_spec(name, *arguments)
sys.meta_path[:] = map(Only, sys.meta_path)
import os
from pathlib import Path
for directory in sys.argv[1:]:
    os.chdir(directory)
    names = {{}}
    lines = Path("README.txt").read_text().splitlines()
    exec("\\n".join(line[4:] for line in lines if line.startswith("    ")), names)
    jax, np = names["jax"], names["np"]
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(names["outputs"])), directory
    cases, found = np.load("../cases.npz"), {{}}
    for number in range(2):
        inputs = {{key[2:]: x for key, x in cases.items() if key[0] == str(number)}}
        if "token" in inputs:  # one after the other
            state = names["init_cache"](names["params"], {{"token": inputs["token"][:, 0]}})
            rows = []
            for token in inputs["token"].T:
                state = names["decode"](names["params"], {{"token": token, "cache": state["cache"]}})
                rows.append(state["logits"])
            found[f"{{number}}/logits"] = np.stack(rows, axis=1)
        elif inputs:
            (forward,) = (names[name] for name in names if name.startswith("forward"))
            for key, x in forward(names["params"], inputs).items():
                found[f"{{number}}/{{key}}"] = x
    np.savez("../found.npz", **found)
print({{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names)
"""


def compare(run_python: Callable, cases: dict[Path, list[tuple[dict[str, Any], dict[str, Any]]]]) -> None:
    """Compares what has been exported to directories with what is expected of inputs.

    It runs in a process that can import JAX and what it needs, and nothing else.
    """
    for out, pairs in cases.items():
        inputs = {f"{number}/{key}": x for number, (given, _) in enumerate(pairs) for key, x in given.items()}
        np.savez(out.parent / "cases.npz", **inputs)
    result = run_python("-I", "-W", "error", "-c", PROGRAM.format(allowed=NO_MORE), *cases)
    assert (result.returncode, result.stderr) == (0, "")
    assert {name for name in eval(result.stdout) if not name.startswith(("_", "cython"))} <= NO_MORE
    for out, pairs in cases.items():
        found = dict(np.load(out.parent / "found.npz"))
        expected = {f"{number}/{key}": x for number, (_, wanted) in enumerate(pairs) for key, x in wanted.items()}
        assert found.keys() == expected.keys()
        for key, x in expected.items():
            np.testing.assert_allclose(found[key], x, rtol=1e-4, atol=2e-5, err_msg=f"{out} {key}")


def untrained(config: Any, workdir: Path) -> Any:
    """A run after its first step, which it has not made; returns its parameters."""
    state = init_state(config, make_mesh(MeshConfig())) | {"step": jnp.int32(1)}
    workdir.mkdir()
    config.save(workdir)
    with Checkpoints(workdir, keep=1) as checkpoints:
        checkpoints.save(1, state)
    return jax.device_get(state["params"])


def test_a_character_model(tmp_path: Path, run_python: Callable) -> None:
    """Forward and decoding, for batches of different sizes; long enough for tiles."""
    config = dataclasses.replace(small.SMALL, windows=(3, 40, 40))
    params = small.random_params(config)
    save_pretrained(tmp_path / "model", config, params)
    out = export_stablehlo(tmp_path / "model", tmp_path / "out", lengths=[300])
    tokens = small.random_tokens(3, 300)
    logits = small.logits_of(config, params, tokens)
    decoded = {"token": tokens[:2, :60]}, {"logits": logits[:2, :60]}
    compare(run_python, {out: [({"tokens": tokens}, {"logits": logits}), decoded]})
    text = (out / "README.txt").read_text()
    assert "  takes tokens: int32 [batch, 300]\n  gives logits: float32 [batch, 300, 29]\n" in text
    assert "cache/layers/0/0: float32 [1, batch, 3, 4, 8]\n" in text


@functools.cache
def encoder(model: type, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    config = dataclasses.replace(encoders.SMALL, **fields)
    return config, encoders.random_params(config, model, seed)


FULL = {"attention_mode": "full", "global_projections": False, "attention_dilation": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options", "fields"),
    [
        (ForMaskedLM, {"global_tokens": 3}, {}),
        (ForQuestionAnswering, {"global_tokens": 9}, {}),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in (
                (Longformer, {}, {}),
                (ForMaskedLM, {}, FULL),
                (ForSequenceClassification, {}, {}),
                (ForSequenceClassification, {"global_tokens": 3}, {"type_vocab_size": 1}),
                (ForMultipleChoice, {"global_tokens": 64}, {}),
            )
        ),
    ],
)
def test_encoders(
    model: type, options: dict[str, int], fields: dict[str, Any], tmp_path: Path, run_python: Callable
) -> None:
    config, params = encoder(model, **fields)
    save_pretrained(tmp_path / "model", config, params, model)
    out = export_stablehlo(tmp_path / "model", tmp_path / "out", lengths=[64], **options)
    ids, mask = encoders.random_ids([64, 40, 7])
    ids[:, 5] = ids[:, 9] = config.sep_token_id
    inputs = {"input_ids": ids, "attention_mask": mask != 0}
    if config.type_vocab_size > 1:
        inputs["token_type_ids"] = (np.cumsum(ids == config.sep_token_id, axis=1) > 0).astype(np.int32)
    if model is ForMultipleChoice:
        inputs = {name: np.stack([x, x[::-1]], axis=1) for name, x in inputs.items()}
    given = inputs
    if options and model in (ForMaskedLM, ForSequenceClassification):
        given = inputs | {"global_attention_mask": (np.arange(64) % 30 == 1) & inputs["attention_mask"]}
        inputs = dict(given)
        if model is ForSequenceClassification:  # whose first token is global in any case
            inputs["global_attention_mask"] = inputs["global_attention_mask"] | (np.arange(64) == 0)
    output: Any = model(config).apply({"params": params}, **inputs)
    names = ("last_hidden_state", "pooler_output") if model is Longformer else ("logits",)
    compare(run_python, {out: [(given, {name: getattr(output, name) for name in names})]})


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    """As `load_tokenizer` has it, from either kind of file, and neither truncating nor padding."""
    text = "the quick brown fox jumps over a lazy dog"
    config, params = encoder(ForMaskedLM, **FULL)
    for kind in ("file", "parts"):
        model = tmp_path / kind / "model"
        save_pretrained(model, config, params, ForMaskedLM)
        tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
        if kind == "file":
            tokenizer.enable_truncation(4)
            tokenizer.enable_padding(length=8)
            tokenizer.save(str(model / "tokenizer.json"))
        else:
            tokenizer.model.save(str(model))
            (model / "added_tokens.json").write_text(json.dumps({"<mask>": tokenizer.token_to_id("<mask>")}))
        out = export_stablehlo(model, tmp_path / kind / "out", lengths=[16])
        found = Tokenizer.from_file(str(out / "tokenizer.json")).encode(text).ids
        assert found == load_tokenizer(model).encode(text).ids and len(found) > 8


@pytest.mark.slow
def test_runs(tmp_path: Path, run_python: Callable) -> None:
    cases = {}
    for config in (tiny.CONFIG, tiny_masked.CONFIG):
        folder = tmp_path / config.objective
        folder.mkdir()
        params = untrained(config, folder / "run")
        ids = np.random.default_rng(0).integers(5, 250, (3, 32)).astype(np.int32)
        if config is tiny.CONFIG:
            options, inputs = [], {"tokens": ids}
            logits = CharLM(config.model_in_phase(0)).apply({"params": params}, ids)
        else:
            options, inputs = ["--global_tokens=2"], {"input_ids": ids, "attention_mask": ids % 7 > 0}
            inputs["global_attention_mask"] = np.arange(32)[None] == [[0], [9], [31]]
            layers = params["longformer"]["layers"]
            own = {f"{name}_global": jax.tree.map(lambda x: x + 1, layers[name]) for name in ("query", "key", "value")}
            with recording(folder / "run" / GLOBAL_FILE) as partial:  # those of `init`, which are not trained
                write_tensors(partial, flatten_dict(own, sep="/"))
            params = params | {"longformer": params["longformer"] | {"layers": layers | own}}
            logits = ForMaskedLM(config.model).apply({"params": params}, **inputs).logits
        export([str(folder / "run"), str(folder / "out"), *options])
        cases[folder / "out"] = [(inputs, {"logits": logits})]
    compare(run_python, cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, id=task.kind, marks=[pytest.mark.exhaustive] * (task.kind != "hotpotqa"))
        for task in tiny_task.TASKS
    ],
)
def test_tasks(task: Task, tmp_path: Path, run_python: Callable) -> None:
    config = tiny_task.of_task(task)
    params = untrained(config, tmp_path / "run")
    rng, inputs = np.random.default_rng(0), {}
    for name, x in config.batch_spec(0, 32).items():
        if name != "weight" and name not in task.targets:
            most = {"input_ids": 300, "sentence": 1, "genre": 3}.get(name, 2 if x.dtype == bool else 8)
            array = rng.integers(0, most, (3, x.shape[1]))
            inputs[name] = array.astype("int32" if name == "input_ids" else x.dtype)
    if "document" in inputs:
        inputs["document"] = np.array([[4, 30]] * 3, np.int32)
    model = config.task_model
    output = task.head(model).apply({"params": params}, **task.inputs(inputs, model, 32))
    found: Any = task.outputs(output, inputs)
    out = export_stablehlo(tmp_path / "run", tmp_path / "out")
    compare(run_python, {out: [(inputs, found if isinstance(found, dict) else {"outputs": found})]})


def test_only_stable_calls_for_both_platforms(tmp_path: Path) -> None:
    """What jax.export guarantees nothing for, it refuses; here even what it would let pass is not called."""
    config, params = encoder(Longformer)
    save_pretrained(tmp_path / "model", config, params)
    out = export_stablehlo(tmp_path / "model", tmp_path / "out", lengths=[20, 64], global_tokens=2)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.txt", "forward_20.stablehlo", "forward_64.stablehlo", "params.npz"
    ]  # fmt: skip
    exported = jax.export.deserialize(bytearray((out / "forward_64.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda")
    calls = {*re.findall(r"custom_call @(\w+)", exported.mlir_module())}
    assert calls <= {"shape_assertion"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^length is not given; expected one, such as --length=512, as A character language model .* has none"),
        ({"lengths": [0]}, r"^length is 0; expected an integer >= 1$"),
        ({"lengths": [8, 8]}, r"^length is 8, 8; expected each number once$"),
        ({"lengths": [8], "step": 3}, r"^step is 3, but '.*' is a model and no run; expected no step$"),
        ({"lengths": [8], "global_tokens": 3}, r"^global_tokens is 3, but '.*' is a character LM; expected it for an "),
        ({"lengths": [8], "global_tokens": 0}, r"^global_tokens is 0; expected an integer >= 1$"),
    ],
)
def test_what_is_refused_of_a_character_model(tmp_path: Path, options: dict, message: str) -> None:
    save_pretrained(tmp_path / "model", small.SMALL, small.random_params(small.SMALL))
    with pytest.raises(InputError, match=message):
        export_stablehlo(tmp_path / "model", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": [129]}, r"^length is 129; expected at most 128$"),
        ({}, r"^global_tokens is None, but the model is a ForQuestionAnswering, whose questions are global; expected"),
    ],
)
def test_what_is_refused_of_an_encoder(tmp_path: Path, options: dict, message: str) -> None:
    model = ForQuestionAnswering if "global_tokens is None" in message else Longformer
    config, params = encoder(model)
    save_pretrained(tmp_path / "model", config, params, model)
    with pytest.raises(InputError, match=message):
        export_stablehlo(tmp_path / "model", tmp_path / "out", **options)


def test_what_is_refused_of_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        (["empty", "out"], "has no config.json; expected the directory of a model"),
        (["empty", "."], "which is there already; expected a new or empty directory"),
        (["file", "out"], "which is no directory; expected the directory of a model or its name on the hub"),
        (["empty", "out", "--length=long"], "argument --length: it is 'long'; expected a number of tokens"),
    ):
        with pytest.raises(SystemExit, match="2"):
            export([str(tmp_path / arguments[0]), str(tmp_path / arguments[1]), *arguments[2:]])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and sentence in line
