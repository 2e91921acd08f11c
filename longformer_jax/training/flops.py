"""Model FLOPs: what the mathematics of the model needs, whatever an implementation spends, and what devices offer."""

import math
from typing import Any

import jax
import numpy as np

from longformer_jax.models import CharLMConfig, LongformerConfig

# Dense bfloat16 FLOP/s of one device, from the makers' data sheets.
PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops() -> float | None:
    """FLOP/s of all devices together, or None where the kind of device is not known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def training_flops_per_character(config: CharLMConfig, params: Any, sequence_length: int) -> float:
    """FLOPs of a forward and a backward pass (twice the forward) for one character of a sequence, without remat.

    A matrix takes 2 FLOPs a parameter. A visible key takes 2 FLOPs for each dimension of the content score, of the
    relative-position score (Transformer-XL only) and of the weighted sum of values.

    Args:
      config: the model.
      params: its parameters, arrays or their shapes.
      sequence_length: T; the first characters of a sequence see fewer keys.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    layers = sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key in ("kernel", "relative"))
    output = config.vocab_size * config.embed_dim
    positions = np.arange(sequence_length)
    pairs = 0.0  # visible (query, key) pairs of a character, summed over layers and heads
    for group in config.layer_groups:
        for heads, step in ((config.dilated_heads, group.dilation), (config.num_heads - config.dilated_heads, 1)):
            visible = np.mean(np.minimum(positions // step, group.window) + 1)
            pairs += (group.stop - group.start) * heads * visible
    terms = 3 if config.positions == "transformer_xl" else 2
    forward = 2 * (layers + output) + 2 * terms * config.head_dim * pairs
    return 3 * float(forward)


def encoder_flops_per_token(config: LongformerConfig, sequence_length: int) -> float:
    """FLOPs of a forward and a backward pass (twice the forward) of the encoder for one token of a sequence, without
    remat, embeddings, heads and global tokens; counted as in `training_flops_per_character`.

    Args:
      config: the model.
      sequence_length: T; tokens at the ends of a sequence see fewer keys.
    """
    E, positions = config.hidden_size, np.arange(sequence_length)
    forward = 0.0
    for group in config.layer_groups:
        visible = float(sequence_length)
        if group.window is not None:
            left, right = (np.minimum(reach // group.dilation, group.window) for reach in (positions, positions[::-1]))
            visible = float(np.mean(left + right + 1))
        forward += (group.stop - group.start) * (
            2 * (4 * E * E + 2 * E * config.intermediate_size) + 2 * 2 * E * visible
        )
    return 3 * forward
