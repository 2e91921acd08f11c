"""Memory of a process that computes on a CPU."""

import ctypes

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = 2**31 - 1


def reuse_freed_memory() -> bool:
    """Makes malloc keep what is freed; to be called before JAX sees its devices, when threads get their own arenas.

    On a CPU, XLA takes the scratch memory of every execution from malloc. By default glibc hands such large blocks back
    to the kernel at once, which clears each of their pages again for the next step. Keeping them made the quickstart's
    steps 1.3 to 1.4 times as fast. train.py and eval.py call this; a library should not do so to the program that uses
    it.

    Returns:
      Whether malloc took the settings; False with a C library other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # A thread's own arena is too small for large blocks, which would be mapped, and unmapped, after all.
    settings = {_M_ARENA_MAX: 1, _M_MMAP_THRESHOLD: _LARGEST, _M_TRIM_THRESHOLD: _LARGEST}
    return all([mallopt(name, value) for name, value in settings.items()])
