"""This project's base-size encoder on two threads of a CPU: float32, B = 1, dropout off. See side.py to run it.

- ours: window 512 in every layer, no global tokens; ours_remat: with layers recomputed in the backward pass.
- ours_global16, ours_global256: with so many global tokens, spread evenly.
- ours_full: the same layers with full attention, that is RoBERTa.

"both" is the gradient of the parameters that take part, as PyTorch's autograd gives it, for a random cotangent of the
last hidden state: without global tokens their projections do not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from longformer_jax import Longformer, LongformerConfig
from side import QUICK, Prepare, main


def maker(*, global_tokens: int = 0, **settings: Any) -> Callable[[str, int], Prepare]:
    def make(work: str, length: int) -> Prepare:
        config = LongformerConfig(
            num_hidden_layers=2 if QUICK else 12,
            max_position_embeddings=length + 2,
            implementation="xla",
            global_projections=global_tokens > 0,
            **settings,
        )
        model = Longformer(config, add_pooling_layer=False)
        ids = jax.random.randint(jax.random.key(0), (1, length), 3, config.vocab_size)
        params = jax.jit(model.init)(jax.random.key(1), ids)["params"]
        spread = jnp.arange(global_tokens) * (length // max(global_tokens, 1))
        mask = jnp.zeros((1, length), bool).at[:, spread].set(True) if global_tokens else None

        def forward(params: Any, ids: jax.Array) -> jax.Array:
            outputs: Any = model.apply({"params": params}, ids, None, mask, max_global_tokens=global_tokens)
            return outputs.last_hidden_state

        def gradients(params: Any, ids: jax.Array, cotangent: jax.Array) -> Any:
            return jax.vjp(lambda params: forward(params, ids), params)[1](cotangent)[0]

        cotangent = jax.random.normal(jax.random.key(2), (1, length, config.hidden_size))
        function, arguments = (forward, (params, ids)) if work == "forward" else (gradients, (params, ids, cotangent))
        compiled = jax.jit(function).lower(*arguments).compile()
        return lambda: lambda: jax.block_until_ready(compiled(*arguments))

    return make


MAKERS = {
    "ours": maker(),
    "ours_remat": maker(remat=True),
    "ours_global16": maker(global_tokens=16),
    "ours_global256": maker(global_tokens=256),
    "ours_full": maker(attention_mode="full"),
}

if __name__ == "__main__":
    main(MAKERS, jax=jax.__version__, jaxlib=jax.lib.__version__)
