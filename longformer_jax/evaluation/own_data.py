"""What all kinds of experiments ask of a text that is not the one that a run was trained on."""

from longformer_jax.errors import InputError


def check_own_data(data: object, **of_the_run: object) -> None:
    """Raises InputError if both a text of one's own and options about the text of the run are given."""
    for name, value in of_the_run.items():
        if data is not None and value is not None:
            raise InputError(f"{name} is {str(value)!r}, but data is {str(data)!r}; expected one of them")
