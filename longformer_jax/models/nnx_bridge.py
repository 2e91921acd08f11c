"""Our Linen models as modules of NNX."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from longformer_jax.errors import InputError
from longformer_jax.models.heads import ForMultipleChoice

if TYPE_CHECKING:
    from flax import nnx


def as_nnx(model: nn.Module, params: Any) -> "nnx.Module":
    """One NNX module of a model and its parameters; it takes the arguments of the model's `apply`, without parameters.

    Its `nnx.Param`s hold the arrays of `params`, under the same names, and
    `nnx.to_pure_dict(nnx.state(module, nnx.Param))` gives them back. A call returns what the model returns in Linen.
    Dropout takes `deterministic=False, rngs=nnx.Rngs(dropout=…)` in the call.

    Args:
      model: `CharLM`, `Longformer` or one with a head.
      params: its parameters, as `init` and `load_pretrained` return them.

    Raises:
      InputError: the parameters are not those of the model.
    """
    from flax import nnx  # not above: it takes a third of a second

    one_token = jnp.zeros((1,) * (3 if isinstance(model, ForMultipleChoice) else 2), jnp.int32)
    module: Any = nnx.eval_shape(lambda: nnx.bridge.ToNNX(model).lazy_init(one_token, rngs=jax.random.key(0)))
    state = nnx.state(module, nnx.Param)
    expected, found = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): jnp.shape(x) for path, x in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (nnx.to_pure_dict(state), params))
    )
    for name in sorted(expected | found):
        if found.get(name) != expected.get(name):
            raise InputError(
                f"params have {name} {found.get(name, 'missing')}; expected {expected.get(name, 'none')}, as "
                f"{type(model).__name__} has it"
            )
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    return module
