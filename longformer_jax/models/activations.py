"""The activations that a model may have, under transformers' names."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

_gelu = functools.partial(nn.gelu, approximate=False)
_tanh_gelu = functools.partial(nn.gelu, approximate=True)


def _laplace(x: jax.Array) -> jax.Array:
    return 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5)))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "gelu_python_tanh": _tanh_gelu,
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10, 10),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu2": lambda x: jnp.square(nn.relu(x)),
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "silu": nn.silu,
    "swish": nn.silu,
    "hardswish": nn.hard_swish,
    "mish": jax.nn.mish,
    "laplace": _laplace,
    "linear": lambda x: x,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}
