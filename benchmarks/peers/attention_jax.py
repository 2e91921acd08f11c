"""JAX's ways to the layer of attention_torch.py: `[B, T, H, D]` float32, 256 keys a side. See side.py to run it.

- ours: banded_attention; ours_dilated: with dilation 4 on 2 of the 12 heads; ours_global: with 16 global keys.
- jax: jax.nn.dot_product_attention with a local window, which materialises T×T scores.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from longformer_jax import banded_attention, merge_attention
from side import Prepare, main

HEADS, HEAD_DIM, WINDOW, GLOBAL_KEYS = 12, 64, 256, 16

band = partial(banded_attention, window=WINDOW, implementation="xla")


def with_global_keys(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """One softmax over the band and 16 evenly spread keys that every query sees."""
    length = key.shape[1]
    positions = jnp.arange(GLOBAL_KEYS) * (length // GLOBAL_KEYS)
    local = jnp.ones((1, length), bool).at[:, positions].set(False)
    band_out, band_lse = band(query, key, value, key_mask=local, return_lse=True)
    few = {"window": length, "implementation": "xla", "return_lse": True}
    few_out, few_lse = banded_attention(query, key[:, positions], value[:, positions], **few)
    return merge_attention(band_out, band_lse, few_out, few_lse)[0]


def maker(attention: Callable[..., Any]) -> Callable[[str, int], Prepare]:
    def make(work: str, length: int) -> Prepare:
        shape = (1, length, HEADS, HEAD_DIM)
        *inputs, cotangent = (jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4))

        def gradients(
            query: jax.Array, key: jax.Array, value: jax.Array, cotangent: jax.Array
        ) -> tuple[jax.Array, ...]:
            return jax.vjp(attention, query, key, value)[1](cotangent)

        function, arguments = (attention, inputs) if work == "forward" else (gradients, [cotangent, *inputs])
        compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: lambda: jax.block_until_ready(compiled(*arguments))

    return make


MAKERS = {
    "ours": maker(band),
    "ours_dilated": maker(partial(band, dilation=(4, 4) + (1,) * (HEADS - 2))),
    "ours_global": maker(with_global_keys),
    "jax": maker(partial(jax.nn.dot_product_attention, local_window_size=WINDOW, implementation="xla")),
}

if __name__ == "__main__":
    main(MAKERS, jax=jax.__version__, jaxlib=jax.lib.__version__)
