"""What train.py and eval.py share: bad input takes one line on standard error."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import jax
from absl import flags

from longformer_jax.errors import InputError


def fail(status: int, error: BaseException | str) -> NoReturn:
    """Prints the sentence and exits."""
    print(f"error: {error}", file=sys.stderr)
    sys.exit(status)


def fail_of_the_system(error: OSError) -> NoReturn:
    """Says what the operating system refused, such as a file that may not be read, and exits with 1."""
    what = " to ".join(repr(str(name)) for name in (error.filename, error.filename2) if name is not None)
    fail(1, f"{what or 'a file'} cannot be read or written ({error.strerror or error})")


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses as absl would, but says in one line what is wrong."""
    try:
        return flags.FLAGS(list(arguments))
    except flags.Error as error:
        first: BaseException = error
        while first.__context__:  # a file of configs/ may have raised InputError itself
            first = first.__context__
        fail(2, first if isinstance(first, InputError) else error)
    # How ml_collections says that the file cannot be read, or that an overridden field is not in it.
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        overrides = ", ".join(argument for argument in arguments if argument.startswith("--config."))
        fail(2, f"{overrides or '--config'} cannot be applied ({error}); expected a field of the configuration")


def check_devices() -> None:
    """Raises InputError where JAX_PLATFORMS names what JAX cannot find here. Without it JAX always has the CPU."""
    try:
        jax.devices()
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # JAX's word for it depends on the platform
        reason = f" ({error})" if str(error) else ""
        name = os.environ.get("JAX_PLATFORMS")
        raise InputError(
            f"JAX_PLATFORMS is {name!r}, but JAX has no such device here{reason}; expected another, such as cpu"
        ) from None
