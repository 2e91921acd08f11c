"""Trains a character language model, or pretrains a masked one.

  python train.py --config=configs/char_lm/quickstart.py --workdir=runs/quickstart
  python train.py --config=configs/pretrain/roberta_base.py --workdir=runs/roberta_base --config.data.path=DIRECTORY

Values of the configuration can be overridden: --config.seed=1 --config.phases[0].windows=32,32,64,64. The same command
continues an interrupted run. On several machines, start it in each with --distributed and a workdir that they share.
"""

from collections.abc import Sequence

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from longformer_jax.command_line import (
    check_devices,
    fail,
    one_line_for_errors,
    parse_flags,
    print_anything,
    print_log,
)
from longformer_jax.errors import InputError
from longformer_jax.host_memory import reuse_freed_memory
from longformer_jax.training import DivergenceError, ExperimentConfig, train

_CONFIG = config_flags.DEFINE_config_file("config", help_string="FILE.py or FILE.py:variant, see configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run: checkpoints, metrics, curve.")
_PROFILE = flags.DEFINE_bool("profile", False, "Writes a trace of a few steps to WORKDIR/profile.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Joins the other processes of a cluster (Slurm, Kubernetes, MPI or TPU) that run this command.",
)


def _read_config() -> ExperimentConfig:
    if not flags.FLAGS["config"].present:
        raise InputError("--config is missing; expected --config=FILE.py or --config=FILE.py:variant")
    try:
        return ExperimentConfig.from_config_dict(_CONFIG.value)
    except OSError as error:  # ml_collections keeps it until the first use
        raise InputError(f"--config cannot be read: {' '.join(str(error.__cause__).split())}") from None


def _join_cluster() -> None:
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise InputError(f"--distributed finds no cluster ({error}); expected a process that one has started") from None


def main(arguments: Sequence[str]) -> None:
    """Runs the experiment; exits with 2 on bad input, and with 1 when the loss, a file or the memory fails."""
    logging.set_verbosity(logging.FATAL)  # Orbax tells every step of a save, and what fails in each of its threads
    reuse_freed_memory()
    print_anything()
    print_log()
    try:
        with one_line_for_errors():
            if len(arguments) > 1:
                raise InputError(f"argument {arguments[1]!r} is not a flag; expected flags that begin with --")
            config = _read_config()
            if not _WORKDIR.value:
                raise InputError("--workdir is missing; expected --workdir=DIRECTORY")
            if _DISTRIBUTED.value:
                _join_cluster()
            check_devices()
            train(config, _WORKDIR.value, profile=_PROFILE.value)
    except DivergenceError as error:
        fail(1, error)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
