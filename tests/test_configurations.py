"""Configurations on the command line: how they are found, and what overrides their fields."""

import dataclasses
import os
import runpy
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.char_lm import paper
from longformer_jax.command_line import accept_none
from longformer_jax.errors import InputError
from longformer_jax.scripts.configurations import (
    configuration_first,
    configurations_help,
    find_configuration,
    known_configurations,
    overrides,
    variants,
)
from longformer_jax.training import ExperimentConfig
from tests.training import tiny, tiny_masked

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / "configs" / "char_lm" / "quickstart.py")


def test_a_configuration_by_its_name_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"quickstart", "enwik8_small", "miniature"} <= known_configurations().keys()
    assert "paper" not in known_configurations()
    files = [path for path in (ROOT / "configs").glob("*/*.py") if path.stem not in ("__init__", "paper")]
    assert len(files) == len(known_configurations())  # each has a name of its own
    monkeypatch.chdir(tmp_path)
    for value in ("quickstart", "configs/char_lm/quickstart.py", QUICKSTART):
        assert find_configuration(f"{value}:minute") == f"{QUICKSTART}:minute"
        assert find_configuration(value) == QUICKSTART
    (tmp_path / "quickstart").write_text("")  # a file goes before a name
    assert find_configuration("quickstart:minute") == "quickstart:minute"
    with pytest.raises(InputError, match="^--config is 'none.py:x', which is no file; expected .* enwik8_large, "):
        find_configuration("none.py:x")


def test_another_package_of_the_same_name(tmp_path: Path, run_python: Callable) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("MINE = 1")
    program = (
        "import configs; from longformer_jax.scripts.configurations import variants, known_configurations as known;"
        "print(configs.MINE, variants(known()['enwik8_large']))"
    )
    ran = run_python("-c", program, PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert (ran.returncode, ran.stdout) == (0, "1 ('smoke',)\n"), ran.stderr


def test_the_configuration_goes_before_what_overrides_it() -> None:
    before = ["train.py", "--config.seed=1", "--workdir=w", "--config=quickstart:minute", "--config.seed=2", "--", "-x"]
    after = ["train.py", f"--config={QUICKSTART}:minute", "--config.seed=1", "--workdir=w", "--config.seed=2"]
    assert configuration_first(before) == [*after, "--", "-x"]
    assert configuration_first(["p", "--a", "-config", "quickstart"]) == ["p", f"--config={QUICKSTART}", "--a"]
    assert configuration_first(["p", "--", "--config=x"]) == ["p", "--", "--config=x"]


def test_the_variants_of_a_configuration(tmp_path: Path) -> None:
    listed = [line.split() for line in configurations_help()]
    assert ["quickstart", ":minute"] in listed and ["enwik8_large", *(f":{x}" for x in paper.VARIANTS)] in listed
    for name, path in known_configurations().items():
        get_config = runpy.run_path(str(path))["get_config"]
        for variant in variants(path):
            get_config(variant)
        with pytest.raises(InputError, match="^config variant is 'none of these'; expected ") as raised:
            get_config("none of these")
        assert all(variant in str(raised.value) for variant in variants(path)), name
    (tmp_path / "config.py").write_text("def get_config(): ...")
    assert variants(tmp_path / "config.py") == ()


def parse(config: ConfigDict, arguments: list[str]) -> ConfigDict:
    """The ConfigDict after these arguments."""
    accept_none()
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["test", *arguments])
    values(["test", *arguments])
    return holder.value


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny_masked.CONFIG], ids=["char_lm", "masked_lm"])
def test_the_flags_of_a_configuration_leave_it_as_it_is(config: ExperimentConfig) -> None:
    listed = overrides(config.to_config_dict())
    assert ExperimentConfig.from_config_dict(parse(config.to_config_dict(), listed)) == config
    assert len(listed) == len(set(listed)) > 40


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny_masked.CONFIG], ids=["char_lm", "masked_lm"])
def test_every_optional_field_can_be_none_and_something_else(config: ExperimentConfig) -> None:
    values = {int: 2, float: 0.5, str: "x"}  # and lists

    def optional(value: Any, path: str) -> list[tuple[str, Any]]:
        found = []
        for field in dataclasses.fields(value):
            item, kind = getattr(value, field.name), typing.get_type_hints(type(value))[field.name]
            name = f"{path}.{field.name}"
            if types.NoneType in typing.get_args(kind):
                found.append((name, values.get(typing.get_args(kind)[0], "x,y")))
            elif dataclasses.is_dataclass(item):
                found += optional(item, name)
        return found

    fields = optional(config, "config") + [("config.phases[1].sequences_per_device", 2)]
    assert {"config.optimizer.clip_norm", "config.optimizer.warmup_steps", "config.init"} <= {
        name for name, _ in fields
    }
    given = parse(config.to_config_dict(), [f"--{name}={value}" for name, value in fields])
    for path, value in fields:
        assert f"--{path}={value}" in overrides(given)
    none = parse(given, [f"--{name}=None" for name, _ in fields])
    for path, _ in fields:
        assert f"--{path}=None" in overrides(none)
