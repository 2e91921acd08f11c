"""The layers of a model: runs of neighbours that are alike, and how these are run."""

import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from flax.linen.module import _global_interceptor_stack as interceptors  # which Flax shows to nobody
from jax import lax

from longformer_jax.attention.choice import VARIABLE
from longformer_jax.attention.pallas import at_home
from longformer_jax.models.finite import finite_tokens
from longformer_jax.models.gpu import unrolls_layers


@dataclasses.dataclass(frozen=True)
class LayerGroup[Window: int | None]:
    """Layers [start, stop) with one window (steps to a side; None: all tokens) and one dilation."""

    start: int
    stop: int
    window: Window
    dilation: int

    @property
    def reach(self: "LayerGroup[int]") -> int:
        """How many positions to a side a layer sees."""
        return self.window * self.dilation


def group_layers(windows: Sequence[int], dilations: Sequence[int]) -> tuple[LayerGroup[int], ...]:
    """Runs of neighbouring layers that share window and dilation: each is one scan."""
    groups, start = [], 0
    for (window, dilation), run in itertools.groupby(zip(windows, dilations, strict=True)):
        stop = start + len(list(run))
        groups.append(LayerGroup(start, stop, window, dilation))
        start = stop
    return tuple(groups)


def dropout_keys(module: nn.Module, group: LayerGroup, deterministic: bool) -> Any:
    """A key for each layer; None where a model has no dropout, or, as in nn.Dropout, no rng for it."""
    if deterministic or not (module.has_rng("dropout") or module.has_rng("params")):
        return None
    return jax.random.split(module.make_rng("dropout"), group.stop - group.start)


def run_layers(
    layer: nn.Module,
    group: LayerGroup,
    params: Any,
    keys: Any,
    x: jax.Array,
    *shared: Any,
    own: Any = None,
    policy: Callable[..., bool] | None = None,
    with_states: bool = False,
    with_marks: bool = False,
) -> Any:
    """Runs the layers of a group, one after the other.

    Outside of jit, they are compiled at the first such call only: a loop that is made anew would be compiled anew.

    Args:
      layer: one of them, without a scope, with a `config` and a `deterministic`: called with x and what follows, it
        returns x and anything.
      group: which of all layers.
      params: the parameters of all layers, stacked on a leading axis.
      keys: of dropout, one for each layer of the group, or None.
      x: [B, T, E].
      shared: what every layer is called with after x.
      own: arrays with a leading axis, whose parts the layers are called with after that; None where there are none.
      policy: what `config.remat` keeps, as `jax.checkpoint` takes it; always the same function.
      with_states: whether the output of each layer is wanted.
      with_marks: whether it is wanted which tokens are finite.

    Returns:
      x [B, T, E] and, stacked on a leading axis, (the output of each layer or None, what else it returned, booleans
      [n, B, T] or None).
    """
    # What a trace depends on without jit's knowledge: where x lies, the environment, and nn.intercept_methods.
    with at_home(x):
        options = policy, with_states, with_marks
        unseen = os.environ.get(VARIABLE), *interceptors
        return _run(layer, group, options, unseen, params, keys, x, shared, own)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), inline=True)
def _run(module: Any, group: LayerGroup, options: tuple[Any, ...], _unseen: Any, params, keys, x, shared, own):
    policy, with_states, with_marks = options

    def layer(x, inputs):
        params, key, own = inputs
        rngs = {} if key is None else {"dropout": key}
        outputs = module.apply({"params": params}, x, *shared, *(() if own is None else (own,)), rngs=rngs)
        x, others = outputs
        return x, (x if with_states else None, others, finite_tokens(x) if with_marks else None)

    if module.config.remat:
        layer = jax.checkpoint(layer, policy=policy)
    params = jax.tree.map(lambda p: p[group.start : group.stop], params)
    return lax.scan(layer, x, (params, keys, own), unroll=unrolls_layers(module.deterministic))
