"""Our Linen models as modules of NNX."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from longformer_jax.errors import InputError
from longformer_jax.models.checks import describe
from longformer_jax.models.parameters import check_params, check_tree, one_token

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
      InputError: `model` is no such model, or the parameters are not those of it.
    """
    from flax import nnx  # not above: it takes a third of a second

    if not isinstance(model, nn.Module):
        raise InputError(f"model is {describe(model)}; expected a model, such as CharLM(config)")
    check_tree(params)
    check_params(model, params, exact=True)
    module: Any = nnx.eval_shape(lambda: nnx.bridge.ToNNX(model).lazy_init(one_token(model), rngs=jax.random.key(0)))
    state = nnx.state(module, nnx.Param)
    nnx.replace_by_pure_dict(state, params)
    nnx.update(module, state)
    return module
