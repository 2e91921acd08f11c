"""Configurations on the command line: where they are, beside the package or in it, and what overrides their fields."""

import importlib
import importlib.machinery
import importlib.util
import runpy
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

import longformer_jax
from longformer_jax.errors import InputError

_PACKAGE = Path(longformer_jax.__file__).parent
_DIRECTORY = next((place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()), None)


def known_configurations() -> dict[str, Path]:
    """The files of the experiments that come with the library, by their names, such as "quickstart"."""
    paths = sorted(_DIRECTORY.glob("*/*.py")) if _DIRECTORY else []
    return {path.stem: path for path in paths if path.stem not in ("__init__", "paper")}


def variants(path: str | Path) -> tuple[str, ...]:
    """The names of the variants of a file of configs/, which it has as VARIANTS; none where it does not say."""
    _make_configs_importable()
    return tuple(runpy.run_path(str(path)).get("VARIANTS", ()))


def configurations_help() -> list[str]:
    """A line for each configuration that comes with the library, with its variants."""
    return [
        textwrap.fill(
            f"  {name:<20}" + " ".join(f":{variant}" for variant in variants(path)),
            120,
            subsequent_indent=" " * 22,
            break_on_hyphens=False,
        ).rstrip()
        for name, path in known_configurations().items()
    ]


def find_configuration(value: str) -> str:
    """What --config means: FILE.py, a name of `known_configurations` or its path, configs/…, each with :VARIANT or not.

    Returns:
      The path of a file, with the variant.

    Raises:
      InputError: there is neither such a file nor such a name.
    """
    _make_configs_importable()
    name, colon, variant = value.partition(":")
    known = known_configurations()
    places = [Path(name), *([_DIRECTORY.parent / name] if _DIRECTORY and name.startswith("configs/") else [])]
    path = next((place for place in places if place.is_file()), known.get(name))
    if path is None:
        raise InputError(
            f"--config is {value!r}, which is no file; expected FILE.py, FILE.py:VARIANT, or in place of a file one of "
            f"{', '.join(known)}"
        )
    return f"{path}{colon}{variant}"


def _make_configs_importable() -> None:
    """Lets files say `from configs.char_lm import paper`, wherever they are, and though there be another `configs`."""
    if not _DIRECTORY:
        return
    if importlib.util.find_spec("configs") is None:
        spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
        spec.submodule_search_locations = []
        sys.modules["configs"] = importlib.util.module_from_spec(spec)
    package = importlib.import_module("configs")
    if hasattr(package, "__path__") and str(_DIRECTORY) not in package.__path__:
        package.__path__ = [*package.__path__, str(_DIRECTORY)]


def configuration_first(arguments: Sequence[str]) -> list[str]:
    """A command line with --config=… as its first argument, before what overrides its fields, and its file found.

    Raises:
      InputError: as `find_configuration`.
    """
    program, *rest = arguments
    ends = rest.index("--") if "--" in rest else len(rest)
    first, others, index = [], [], 0
    while index < ends:
        flag, equals, value = rest[index].partition("=")
        if flag not in ("--config", "-config"):
            others.append(rest[index])
        elif equals:
            first.append(f"--config={find_configuration(value)}")
        elif index + 1 < ends:  # the value stands alone
            index += 1
            first.append(f"--config={find_configuration(rest[index])}")
        index += 1
    return [program, *first, *others, *rest[ends:]]


def overrides(config: Any) -> list[str]:
    """The fields of a ConfigDict as flags that leave it as it is: ["--config.seed=0", …]."""

    def flatten(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, ConfigDict):
            for key in value:
                yield from flatten(value[key], f"{path}.{key}")
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from flatten(item, f"{path}[{index}]")
        else:
            yield f"{path}={','.join(map(str, value)) if isinstance(value, tuple) else value}"

    return list(flatten(config, "--config"))
