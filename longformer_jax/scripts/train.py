"""Trains a character language model, pretrains a masked one or fine-tunes on a task: train.py, or longformer-train.

  longformer-train --config=quickstart --workdir=runs/quickstart
  longformer-train --config=roberta_base --workdir=runs/roberta_base --config.data.path=DIRECTORY
  longformer-train --config=imdb --workdir=runs/imdb --config.data.path=aclImdb_v1.tar.gz --seeds=5
  longformer-train --config=my_experiment.py:variant --workdir=runs/mine --config.init=runs/quickstart/model

Fields of the configuration can be overridden: --config.seed=1 --config.phases[0].windows=32,32,64,64
--config.optimizer.clip_norm=None. --config=… --help lists them. The same command continues an interrupted run. On
several machines, start it in each, with --distributed and a workdir that they share: see docs/several_machines.md.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from longformer_jax.command_line import (
    accept_none,
    check_devices,
    fail,
    ignore_late_results,
    one_line_for_errors,
    parse_flags,
    print_anything,
    print_log,
)
from longformer_jax.errors import InputError
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.processes import ProcessError
from longformer_jax.scripts import cluster
from longformer_jax.scripts.configurations import configuration_first, configurations_help, overrides, variants
from longformer_jax.settings import keep_compiled
from longformer_jax.training import DivergenceError, ExperimentConfig, train, train_seeds

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="FILE.py or FILE.py:VARIANT; or the name of one that comes with the library."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, curve.")
_PROFILE = flags.DEFINE_bool("profile", False, "Writes a trace of a few steps to WORKDIR/profile.")
_SEEDS = flags.DEFINE_integer(
    "seeds", None, "Trains this many times, with seeds that count up, in WORKDIR/seed_N; reports mean and deviation."
)
flags.adopt_module_key_flags(cluster)


def _read_config() -> ExperimentConfig:
    if not flags.FLAGS["config"].present:
        raise InputError("--config is missing; expected --config=FILE.py or --config=FILE.py:variant")
    try:
        return ExperimentConfig.from_config_dict(_CONFIG.value)
    except OSError as error:  # ml_collections keeps it until the first use
        raise InputError(f"--config cannot be read: {' '.join(str(error.__cause__).split())}") from None


def main(arguments: Sequence[str]) -> None:
    """Runs the experiment; exits with 1 when it diverges."""
    logging.set_verbosity(logging.FATAL)  # Orbax tells every step of a save, and what fails in each of its threads
    ignore_late_results()
    print_log()
    reuse_freed_memory()
    keep_compiled()
    print_anything()
    if len(arguments) > 1:
        raise InputError(f"argument {arguments[1]!r} is not a flag; expected flags that begin with --")
    config = _read_config()
    if not _WORKDIR.value:
        raise InputError("--workdir is missing; expected --workdir=DIRECTORY")
    try:
        with cluster.member():
            check_devices()
            if _SEEDS.value is None:
                train(config, _WORKDIR.value, profile=_PROFILE.value)
            else:
                train_seeds(config, _WORKDIR.value, _SEEDS.value, profile=_PROFILE.value)
    except (DivergenceError, ProcessError) as error:
        fail(1, error)


def _more_help() -> list[str]:
    """The variants and fields of the configuration, where there is one, else the configurations that there are."""
    if not flags.FLAGS["config"].present:
        return ["Configurations that come with the library, and their variants:", *configurations_help()]
    fields = ["Fields of the configuration, each of which can be overridden:", *overrides(_CONFIG.value)]
    others = variants(config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0])
    return ([f"Variants, as --config=FILE:VARIANT: {', '.join(others)}", ""] if others else []) + fields


def _parse(arguments: Sequence[str]) -> list[str]:
    # ml_collections looks for what is overridden itself, and only after the configuration.
    sys.argv = configuration_first(arguments)
    accept_none()
    return parse_flags(sys.argv, __name__, _more_help)


def run() -> None:
    """The command."""
    with one_line_for_errors():
        app.run(main, flags_parser=_parse)
