"""Page faults are what the setting saves, and what can be counted exactly."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource, sys
from longformer_jax.host_memory import reuse_freed_memory
if sys.argv[1] == "keep":
    assert reuse_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: jnp.linalg.norm((x @ x.T) @ x))
x = jnp.ones((3000, 100))
for _ in range(5):
    step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], env=environment, cwd=root, check=True, capture_output=True, text=True
    ).stdout
    return int(output)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_scratch_memory_is_reused():
    # A step's scratch is 3000 x 3000 floats, 8,800 pages, touched anew by each of twenty steps. Where memory is kept, a
    # few steps may still touch new pages: a step's scratch is freed shortly after its result is ready.
    default = page_faults("as it is")
    assert default > 20 * 4000
    assert page_faults("keep") < default / 3
