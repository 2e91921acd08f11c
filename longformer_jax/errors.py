"""The one exception that bad input raises."""


class InputError(ValueError):
    """Bad input: one sentence naming the field, the value and what was expected.

    The command lines print it without a traceback and exit with status 2; any other exception is a bug.
    """
