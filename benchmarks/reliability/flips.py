"""A bit of a file is flipped, or its end is lost: is it noticed?

Each trial damages one file of a finished run, of a cache of data, or of a model, and reads it as a user would: a run by
training that goes on, or for evaluation; a cache by the experiment that it is of; a model by `load_pretrained`. What
comes out is

- named: an InputError that names the file or its directory;
- built again: the same as before, with a warning;
- harmless: the same as before;
- unnoticed: something else, of a file that nothing has a sum of, such as one that another program has written.

Something else of a file with a sum, or an exception of another kind, is a fault. A hang or a crash ends the command.
"""

import contextlib
import dataclasses
import faulthandler
import functools
import hashlib
import io
import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from benchmarks.reliability.experiments import experiment
from benchmarks.reliability.trials import Record, crosstable
from longformer_jax import CharLM, ForMaskedLM, InputError, load_pretrained, load_tokenizer, save_pretrained
from longformer_jax.checksums import CHECKSUMS
from longformer_jax.training import ExperimentConfig, train
from longformer_jax.training.masked_lm import TokenData
from longformer_jax.training.workdir import MODEL_DIRECTORY, load_char_lm
from longformer_jax.weights.pretrained import save_converted
from longformer_jax.weights.tokenizer import save_tokenizer
from longformer_jax.weights.torch_pickle import read_torch_file
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.models import encoders, small

TRIALS = 1000
GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
TIMEOUT = 300  # seconds for a trial
# What a run leaves for people, or writes anew each time.
_NOT_READ = ("curve.png", "tensorboard", MODEL_DIRECTORY)


@dataclasses.dataclass(frozen=True)
class Target:
    """Files that belong together.

    Attributes:
      name: what they are.
      directory: where they are, whole.
      read: what they say, from a copy of the directory.
      has_sum: whether a file, by its path in the directory, is one that a sum is kept of.
      expected: what `read` says of the directory.
    """

    name: str
    directory: Path
    read: Callable[[Path], str]
    has_sum: Callable[[str], bool]
    expected: str

    @property
    def files(self) -> list[str]:
        """Their paths in the directory."""
        names = (path.relative_to(self.directory) for path in sorted(self.directory.rglob("*")) if path.is_file())
        return [name.as_posix() for name in names if name.parts[0] not in _NOT_READ and name.name != "lock"]


def digest(*values: Any) -> str:
    """Of trees of arrays, and of what else has a repr."""
    sha = hashlib.sha256()
    for value in values:
        for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(value)):
            content = leaf.tobytes() if hasattr(leaf, "tobytes") else repr(leaf).encode()
            sha.update(jax.tree_util.keystr(path).encode() + hashlib.sha256(content).digest())
    return sha.hexdigest()


def make(folder: Path, name: str, files: Path, read: Callable[[Path], str], has_sum: Callable[[str], bool]) -> Target:
    """A target, which is read once."""
    return Target(name, files, read, has_sum, read(_copy(files, folder / "copy")))


def runs(folder: Path) -> Iterator[Target]:
    """Finished runs, and the caches of their data, made in a folder."""
    for kind in ("char_lm", "task"):
        config = dataclasses.replace(experiment(kind, folder / "data" / kind, (6, 4)), keep_checkpoints=1)
        if not (folder / kind).exists():
            train(config, folder / kind)
        yield make(folder, f"run of a {kind}", folder / kind, functools.partial(_go_on, config), _of_run)
    yield make(folder, "run, for evaluation", folder / "char_lm", lambda run: digest(*load_char_lm(run)), _of_run)
    for kind in ("masked_lm", "task"):
        config = experiment(kind, folder / "data" / kind)
        config.load_data()
        cache = Path(config.data.cache_dir)
        yield make(folder, f"cache of a {kind}", cache, functools.partial(_load, config), lambda _: True)


def models(folder: Path) -> Iterator[Target]:
    """Models, as this library and others write them, made in a folder."""
    save_pretrained(folder / "lm", small.SMALL, small.random_params(small.SMALL))
    yield make(folder, "model: char LM", folder / "lm", _char_lm, lambda name: name != CHECKSUMS)
    torch = folder / "torch"
    torch.mkdir(exist_ok=True)
    for name in ("zip", "protocol_4", "legacy"):
        shutil.copy(GOLDEN / "torch_files" / f"{name}.bin", torch)
    # The members of a zip archive have sums of their own, the older format has none.
    yield make(folder, "PyTorch's files", torch, _torch_files, lambda name: not name.startswith("legacy"))
    params = encoders.random_params(encoders.SMALL, ForMaskedLM)
    save_pretrained(folder / "encoder", encoders.SMALL, params, ForMaskedLM)
    save_tokenizer(folder / "encoder", tiny_tokenizer(), 128)
    yield make(folder, "model: encoder", folder / "encoder", _encoder, lambda name: name != CHECKSUMS)
    bare = _copy(folder / "encoder", folder / "bare")
    (bare / CHECKSUMS).unlink()
    yield make(folder, "model without sums", bare, _encoder, lambda _: False)
    save_converted(folder / "converted", encoders.SMALL, params)
    yield make(folder, "model: converted", folder / "converted", _masked_lm, _of_run)


def _of_run(name: str) -> bool:
    """What a directory of Orbax is in, has sums; what is beside it, none."""
    return "params/" in name or "train/" in name


def _go_on(config: ExperimentConfig, workdir: Path) -> str:
    """What training finds and leaves when it goes on with a finished run."""
    state = train(config, workdir)
    files = [(path.name, path.read_bytes()) for path in sorted((workdir / MODEL_DIRECTORY).iterdir())]
    return digest(state, files, (workdir / "metrics.jsonl").read_bytes())


def _load(config: ExperimentConfig, cache: Path) -> str:
    """What an experiment has of its data."""
    data = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_dir=str(cache))).load_data()
    if isinstance(data, TokenData):
        return digest(data.fingerprint, [dict(corpus.splits) for corpus in data.corpora])
    rows = [features.columns for features in (*data.train, *data.validation)]
    values = [{name: (column.values[:], column.starts) for name, column in columns.items()} for columns in rows]
    examples = [features.examples for features in (*data.train, *data.validation)]
    return digest(data.fingerprint, data.name, values, json.dumps(examples))


def _encoder(model: Path) -> str:
    config, params = load_pretrained(model, ForMaskedLM)
    return digest(repr(config), params, load_tokenizer(model).to_str())


def _masked_lm(model: Path) -> str:
    return digest(*load_pretrained(model, ForMaskedLM))


def _char_lm(model: Path) -> str:
    return digest(*load_pretrained(model, CharLM))


def _torch_files(folder: Path) -> str:
    return digest({path.name: {k: x.read() for k, x in read_torch_file(path).items()} for path in folder.iterdir()})


def _copy(directory: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    return Path(shutil.copytree(directory, place, symlinks=True))


class _Warnings(logging.Handler):
    """Counts what is logged as a warning."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.WARNING


@contextmanager
def prepare(folder: Path) -> Iterator[list[Target]]:
    """All targets."""
    folder.mkdir(exist_ok=True)
    logging.getLogger("longformer_jax").propagate = False  # of damaged caches, which are expected
    with contextlib.redirect_stdout(io.StringIO()):
        found = [*runs(folder), *models(folder)]
    yield found


def trial(rng: random.Random, number: int, shared: list[Target]) -> Record:
    """Damages a file and reads it."""
    target = rng.choice(shared)
    directory = _copy(target.directory, target.directory.with_name("copy"))
    sizes = {file: (directory / file).stat().st_size for file in target.files}
    files = [file for file, size in sizes.items() if size]
    # Small files as often as large ones, or bytes of all files equally often.
    (file,) = rng.choices(files, None if rng.random() < 0.5 else [sizes[file] for file in files])
    content = bytearray((directory / file).read_bytes())
    if cut := rng.random() < 0.25:
        del content[rng.randrange(len(content)) :]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    (directory / file).write_bytes(content)

    record: Record = {"target": target.name, "file": file, "damage": "cut" if cut else "flip", "fault": None}
    warnings, logger = _Warnings(), logging.getLogger("longformer_jax")
    logger.addHandler(warnings)
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            read = target.read(directory)
    except InputError as error:
        is_named = str(directory) in str(error) or Path(file).name in str(error)
        fault = None if is_named else "an InputError that does not name the file"
        return record | {"outcome": "named" if is_named else "fault", "fault": fault, "sentence": str(error)}
    except Exception as error:
        fault = f"{type(error).__name__}: {str(error)[:300]}"
        return record | {"outcome": "fault", "fault": f"{target.name}, {file}: {fault}"}
    finally:
        faulthandler.cancel_dump_traceback_later()
        logger.removeHandler(warnings)
    if read == target.expected:
        return record | {"outcome": "built again" if warnings.count else "harmless"}
    if not target.has_sum(file):
        return record | {"outcome": "unnoticed"}
    return record | {"outcome": "fault", "fault": f"{target.name}, {file}: something else is read"}


def table(records: Sequence[Record]) -> str:
    """What came out, by what was damaged."""
    return crosstable(records, "target", "outcome")
