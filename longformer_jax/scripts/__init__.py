"""The commands longformer-train and longformer-eval, as train.py and eval.py of a checkout, and longformer-export."""

import re
import sys

from longformer_jax.loading import run_command
from longformer_jax.scripts.supervisor import supervised


def longformer_train() -> None:
    """See train.py here."""
    if any(re.fullmatch("--?distributed(=(true|t|1|yes|y))?", argument, re.IGNORECASE) for argument in sys.argv[1:]):
        supervised()
    run_command(f"{__name__}.train")


def longformer_eval() -> None:
    """See evaluate.py here."""
    run_command(f"{__name__}.evaluate")


def longformer_export() -> None:
    """See export.py here."""
    run_command(f"{__name__}.export")
