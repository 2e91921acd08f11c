"""Random configurations: a run, or one sentence that says what is wrong, and never a traceback.

Each trial takes a configuration that comes with the library, or a tiny one of the tests, and overrides one to four of
its fields on the command line of train.py: by numbers that are near to what is there, or enormous, or none; by words,
lists and None; by the names of other choices. What is accepted and small runs for two steps, checkpoint included. What
is accepted and large goes as far as a run does before it compiles: data, memory, and the traced and lowered step of one
of its phases. Every trial is a process of its own, with bounded memory and time.
"""

import functools
import importlib
import itertools
import json
import math
import os
import random
import resource
import shutil
import unittest.mock
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks.reliability.experiments import EXPERIMENTS, KINDS, experiment
from benchmarks.reliability.forks import Fork, run_train
from benchmarks.reliability.trials import Record, crosstable
from longformer_jax.errors import InputError
from longformer_jax.scripts.configurations import known_configurations, overrides, variants
from longformer_jax.training import loop
from longformer_jax.training.preemption import StopRequest
from longformer_jax.training.step import compile_train_step
from tests.data.tiny_tokenizer import tiny_tokenizer
from tests.tasks import sets, test_coreference, test_hotpotqa, test_wikihop

TRIALS = 1000
STEPS = 2
MEMORY = 10 * 2**30
SECONDS = 200  # of a processor
WAIT = 1800  # seconds by the clock

# Small enough to run: parameters, times tokens of a step.
SMALL = 1e8

NUMBERS = "0 1 2 3 7 64 -1 -2 2147483647 2147483648 9223372036854775808 10000000000000000000000000".split()  # noqa: SIM905
FLOATS = "0.0 -0.0 0.5 1.0 1.5 -0.1 1e-320 1e-30 1e30 1e308 1e400 nan inf -inf".split()  # noqa: SIM905
WORDS = ["", *"x None True false [] () {} 1,2 1,x , é∞ - [1 None,None".split(), "x" * 5000]  # noqa: SIM905
PATHS = "/dev/null /proc/self/mem missing/x . ~nobody-of-that-name/x http://x/y text empty".split()  # noqa: SIM905
CHOICES = """
    adamw muon constant linear cosine polynomial random copied char_lm masked_lm task ( f1 embedding layers
    float32 bfloat16 float16 float64 int8 reference xla pallas_triton pallas_mosaic_gpu
    transformer_xl rotary gelu relu full sliding_window text_file tiny_shakespeare
    classification imdb hyperpartisan wikihop triviaqa hotpotqa coreference
""".split()  # noqa: SIM905


@dataclass(frozen=True)
class Lab:
    """The folder of all trials; the command lines to begin with, and the fields of their configurations."""

    folder: Path
    bases: list[tuple[list[str], list[str]]]


@contextmanager
def prepare(folder: Path) -> Iterator[Lab]:
    """Data for all configurations, and what each needs to find them."""
    folder.mkdir(exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    found = write_data(folder / "data")
    bases = []
    for kind in KINDS:
        config = experiment(kind, folder / "data" / kind)
        flags = [f"--config={EXPERIMENTS}:{kind}@{folder / 'data' / kind}"]
        bases += [(flags, overrides(config.to_config_dict()))] * 6  # as often as others, which have variants
    for name, path in known_configurations().items():
        module = importlib.import_module(f"configs.{path.parent.name}.{name}")
        for variant in ("", *variants(path)):
            try:
                values = module.get_config(*([variant] if variant else []))
            except InputError:  # of the one that is nothing without a variant
                continue
            flags = [f"--config={name}{':' * bool(variant)}{variant}"]
            match path.parent.name:
                case "char_lm":
                    flags += ["--config.data.source=tiny_shakespeare"]
                case "pretrain":
                    flags += found["pretrain"]
                case _:
                    flags += [*found["tasks"], f"--config.data.path={folder / 'data' / 'tasks' / name}"]
            bases.append((flags, overrides(values)))
    yield Lab(folder, bases)


def write_data(folder: Path) -> dict[str, list[str]]:
    """Small data of all tasks and a tokenizer, in a folder; the flags that name them."""
    tasks = folder / "tasks"
    if not tasks.exists():
        for name in ("imdb", "hyperpartisan", "triviaqa", "wikihop", "coreference"):
            (tasks / name).mkdir(parents=True)
        shutil.move(sets.aclimdb(tasks / "imdb"), tasks / "aclImdb")
        shutil.rmtree(tasks / "imdb")
        (tasks / "aclImdb").rename(tasks / "imdb")
        sets.semeval(tasks / "hyperpartisan")
        sets.triviaqa(tasks / "triviaqa")
        for split in ("train", "dev"):
            (tasks / "wikihop" / f"{split}.json").write_text(json.dumps(test_wikihop.QUESTIONS))
            (tasks / "coreference" / f"{split}.english.v4_gold_conll").write_text(test_coreference.conll())
        (tasks / "hotpotqa").mkdir()
        test_hotpotqa.written(tasks / "hotpotqa")
        experiment("task", tasks)
        (tasks / "documents").rename(tasks / "classification")
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "text").write_text("\n\n".join(["The quick brown fox jumps over a lazy dog. " * 20] * 60))
    (folder / "empty").write_bytes(b"")
    special = [0, 1, 2, 3, tokenizer.token_to_id("<mask>")]
    shared = ["--config.init=None", f"--config.data.tokenizer={folder / 'tokenizer.json'}"]
    return {
        "pretrain": [
            *shared,
            f"--config.data.path={folder / 'text'}",
            "--config.data.validation_fraction=0.2",
            f"--config.mask_token_id={special[-1]}",
            f"--config.special_token_ids={','.join(map(str, special))}",
        ],
        "tasks": shared,
    }


def draw_value(rng: random.Random, value: str) -> str:
    """What a field is overridden by, where there is a value now."""
    if rng.random() < 0.2:
        return rng.choice(rng.choice([NUMBERS, FLOATS, WORDS, PATHS, CHOICES]))
    if "," in value:
        items = value.split(",")
        index = rng.randrange(len(items))
        match rng.randrange(4):
            case 0:
                del items[index]
            case 1:
                items.insert(index, items[index])
            case _:
                items[index] = draw_value(rng, items[index])
        return ",".join(items)
    if value in ("True", "False"):
        return rng.choice(["True", "False"])
    if value == "None":
        return rng.choice(rng.choice([NUMBERS, FLOATS, CHOICES, WORDS]))
    try:
        number = int(value) if value.lstrip("-").isdigit() else float(value)
    except ValueError:
        return rng.choice(rng.choice([CHOICES, CHOICES, WORDS, PATHS]))
    if rng.random() < 0.2:
        return rng.choice(NUMBERS if isinstance(number, int) else FLOATS)
    half = number // 2 if isinstance(number, int) else number / 2
    return str(rng.choice([number + 1, number - 1, number * 2, half, number * 2, half, -number, number * 1000]))


def trial(rng: random.Random, number: int, shared: Lab) -> Record:
    """Overrides some fields of a configuration."""
    flags, fields = rng.choice(shared.bases)
    arguments = [*flags]
    for field in rng.sample(fields, rng.choice([1, 1, 2, 3, 4])):
        name, _, value = field.partition("=")
        arguments.append(f"{name}={draw_value(rng, value)}")
    devices, phase = rng.choice([1, 1, 4]), rng.random()
    place = shared.folder / "trial"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name in ("text", "empty"):
        shutil.copy(shared.folder / "data" / name, place)
    arguments.append(f"--workdir={place / 'run'}")
    record: Record = {"fault": None, "arguments": arguments, "devices": devices}
    run = functools.partial(_run, arguments, devices, phase, place, shared.folder / "compiled")
    with Fork(run, place / "output", place / "errors") as fork:
        status, output, errors = fork.wait(WAIT), (place / "output").read_text(errors="replace"), fork.errors
    record |= {"kind": arguments[0].partition("=")[2].split("/")[-1], "status": status, "errors": errors[-3000:]}
    record["outcome"] = _outcome(status, output, errors)
    if record["outcome"] == "fault":
        record["fault"] = f"status {status}, {' '.join(arguments)}: {errors[-1500:]}"
    return record


def _outcome(status: int | None, output: str, errors: str) -> str:
    lines = errors.splitlines()
    if status == 0 and "Traceback" not in errors:
        return "ran" if "\n- ran" in output else "lowered" if "\n- lowered" in output else "fault"
    if status in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "):
        return "one sentence"
    return "fault"


def _run(arguments: Sequence[str], devices: int, phase: float, place: Path, programs: Path) -> None:
    """train.py with these arguments, in this process."""
    os.chdir(place)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    whole, changed = loop._run, unittest.mock.patch.object
    changed(loop, "_run", lambda *given: _try(whole, phase, *given)).start()
    asked = itertools.count(1)
    changed(StopRequest, "after_step", lambda self: next(asked) >= STEPS).start()
    run_train(arguments, devices=devices, programs=programs)


def _try(whole: Any, phase: float, config: Any, workdir: Path, data: Any, mesh: Any, abstract: Any, *rest: Any) -> Any:
    """What takes the place of a run, once all is seen to fit."""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract["params"]))
    first = config.phases[0]
    if parameters * first.batch_size * first.sequence_length < SMALL:
        state = whole(config, workdir, data, mesh, abstract, *rest)
        print("\n- ran")
        return state
    index = int(phase * len(config.phases))
    with unittest.mock.patch.object(jax.stages.Lowered, "compile"):
        for length, spec in config.batch_specs(index, data).items():
            compile_train_step(config, index, loop.accumulation_steps(config, index, mesh, length), mesh, spec)
    print("\n- lowered")
    return abstract


def table(records: Sequence[Record]) -> str:
    """What came out, by the kind of configuration."""
    return crosstable(
        [{"configuration": record["kind"].split(":")[0], "outcome": record["outcome"]} for record in records],
        "configuration",
        "outcome",
    )
