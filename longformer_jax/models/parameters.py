"""The parameters that a model has, and whether those that it is given are these."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from longformer_jax.errors import InputError
from longformer_jax.models.checks import check_config, describe

# Parts of the paths of parameters that only some settings make, and the settings.
_BECAUSE = {
    "_global/": "global_projections",
    "lm_head/decoder/": "tie_word_embeddings",
    "layers/relative": "positions",
    "layers/query_norm/": "qk_norm",
    "layers/key_norm/": "qk_norm",
    "head": "tie_embeddings",
}


def one_token(module: nn.Module) -> jax.Array:
    """The least input that a model can be initialised with: int32 zeros [1, 1], or with as many axes as it takes."""
    return jnp.zeros((1,) * getattr(module, "input_axes", 2), jnp.int32)


def abstract_params(module: nn.Module) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and dtype of each parameter, by its path "a/b/c"."""
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), one_token(module))["params"])
    return flatten_dict(params, sep="/")  # type: ignore


def names_wrong_params[**P, R](call: Callable[P, R]) -> Callable[P, R]:
    """A model's `__call__` that fails with an InputError where it fails because of its configuration or parameters.

    Only then are they looked at: a call that succeeds has had all that it needs. Others are passed over.
    """

    @functools.wraps(call)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except InputError:
            raise
        except Exception:
            module: Any = args[0]
            kind: Any = next(field.type for field in dataclasses.fields(module) if field.name == "config")
            check_config(module.config, kind)
            if not module.is_mutable_collection("params"):  # else they are being made
                check_params(module, module.variables.get("params", {}))
            raise

    return named


def check_tree(params: Any) -> None:
    """Raises InputError unless `params` is a tree, and not what `init` returns, which has it under "params"."""
    if not isinstance(params, Mapping) or "params" in params:
        found = f"{{{', '.join(map(repr, params))}: …}}" if isinstance(params, Mapping) else describe(params)
        raise InputError(f"params is {found}; expected the parameters of the model, as init(…)['params'] has them")


def check_params(module: nn.Module, params: Any, *, exact: bool = False) -> None:
    """Raises InputError unless a model has parameters of these paths and shapes; `exact` allows no others."""
    _compare(module, _shapes(params), _shapes(abstract_params(module.clone(parent=None, name=None))), exact)


def stacked_layers(module: nn.Module, init: Callable[..., Any]) -> Any:
    """The parameters of all layers, as `init` makes them of a key and the configuration, where a model is called.

    Raises:
      InputError: some are missing or have other shapes, which a scan over too many layers would not notice.
    """
    config = module.config  # type: ignore
    if not module.has_variable("params", "layers"):
        return module.param("layers", init, config)
    layers = module.get_variable("params", "layers")
    expected = _abstract_layers(init, config)
    _compare(module, _shapes({"layers": layers}), _shapes({"layers": expected}), exact=False)
    return {name: layers[name] for name in expected}


@functools.cache
def _abstract_layers(init: Callable[..., Any], config: Any) -> Any:
    return jax.eval_shape(lambda: init(jax.random.key(0), config))


def _compare(module: nn.Module, found: Mapping[str, Any], expected: Mapping[str, Any], exact: bool) -> None:
    for path in sorted(expected.keys() | found.keys() if exact else expected):
        if found.get(path) != expected.get(path):
            raise InputError(
                f"params have {path} {found.get(path, 'missing')}; expected {expected.get(path, 'none')}, as "
                f"{type(module).__name__} has it{_because(module, path)}"
            ) from None


def _shapes(params: Any) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): getattr(x, "shape", type(x).__name__)
        for path, x in leaves
    }


def _because(module: nn.Module, path: str) -> str:
    config = getattr(module, "config", None)
    fields = (field for part, field in _BECAUSE.items() if part in path and hasattr(config, field))
    field = next(fields, None)
    return f" where config.{field} is {getattr(config, field)!r}" if field else ""
