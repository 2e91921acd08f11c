"""The commands longformer-train and longformer-eval; train.py and eval.py of a checkout are the same."""

from longformer_jax.loading import run_command


def longformer_train() -> None:
    """See train.py here."""
    run_command(f"{__name__}.train")


def longformer_eval() -> None:
    """See evaluate.py here."""
    run_command(f"{__name__}.evaluate")
