"""What the models check of arrays of which every process has a part."""

import socket
from collections.abc import Callable

import pytest

PROGRAM = """
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from longformer_jax import InputError
from longformer_jax.models.checks import check_tokens
from longformer_jax.models.global_attention import check_masks, find_global_tokens, global_capacity, invalid_rows

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
ids = np.full((2, 8), 3, np.int32)


def make(spec):
    return jax.make_array_from_callback(ids.shape, NamedSharding(mesh, spec), lambda index: ids[index])


spread, copied = make(P("batch")), make(P())
check_tokens("tokens", spread, 4)  # their values are not known
check_masks(spread, None)
assert invalid_rows(copied, None) is None
for call in (
    lambda: check_tokens("tokens", copied, 3),
    lambda: find_global_tokens(spread, None, None),
    lambda: global_capacity(spread),
):
    try:
        call()
    except InputError as error:
        print(error)
"""

SENTENCES = [
    "tokens holds 3; expected integers from 0 to 2",
    "max_global_tokens is None while global_attention_mask is spread over several processes; expected a number of "
    "global tokens that no row exceeds, such as global_capacity(global_attention_mask) on the host",
    "global_attention_mask is spread over several processes; expected an array whose values can be counted",
]


@pytest.mark.slow
def test_arrays_of_several_processes(start_python: Callable) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [start_python("-c", PROGRAM, address, i) for i in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert (process.returncode, output.splitlines()) == (0, SENTENCES), errors
