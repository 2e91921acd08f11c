"""The commands longformer-train and longformer-eval, as train.py and eval.py of a checkout, and longformer-export."""

from longformer_jax.loading import run_command


def longformer_train() -> None:
    """See train.py here."""
    run_command(f"{__name__}.train")


def longformer_eval() -> None:
    """See evaluate.py here."""
    run_command(f"{__name__}.evaluate")


def longformer_export() -> None:
    """See export.py here."""
    run_command(f"{__name__}.export")
