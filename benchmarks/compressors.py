"""What xz and PPMd make of a text that a character model was trained on and validated with.

    python benchmarks/compressors.py TEXT
    python benchmarks/compressors.py TEXT 200000     the first so many characters of validation only

Of the splits that train.py cuts from a file, 90, 5 and 5%: bits per character of validation alone, and with all that it
adds to the compressed training text, which is to a compressor what training is to a model. PPMd is variant H with 16
characters of context and 1 GiB; it needs `pip install pyppmd`. Prints JSON.
"""

import json
import lzma
import sys
import time
from collections.abc import Callable
from pathlib import Path

DICTIONARY = 1 << 27  # bytes: all of a text of enwik8's size


def xz(text: bytes) -> int:
    """The size at the highest level, with a dictionary that holds the text."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": DICTIONARY}]
    return len(lzma.compress(text, filters=filters))


def ppmd(text: bytes) -> int:
    """The size."""
    import pyppmd  # pyrefly: ignore[missing-import]

    encoder = pyppmd.Ppmd7Encoder(16, 1 << 30)
    return len(encoder.encode(text)) + len(encoder.flush())


def bits_per_character(size: Callable[[bytes], int], training: bytes, validation: bytes) -> dict[str, float]:
    """Of validation alone and behind the training text, and the seconds of all of it."""
    began = time.perf_counter()
    alone, whole, before = size(validation), size(training + validation), size(training)
    return {
        "alone": 8 * alone / len(validation),
        "behind_training": 8 * (whole - before) / len(validation),
        "seconds": time.perf_counter() - began,
    }


def main() -> None:
    path, *limit = sys.argv[1:]
    text = Path(path).read_bytes()
    start, end = round(0.9 * len(text)), round(0.95 * len(text))
    training, validation = text[:start], text[start:end]
    if limit:
        validation = validation[: int(limit[0])]
    found = {size.__name__: bits_per_character(size, training, validation) for size in (xz, ppmd)}
    print(json.dumps({"characters": len(validation)} | found, indent=1))


if __name__ == "__main__":
    main()
