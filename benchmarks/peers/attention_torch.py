"""PyTorch's ways to one layer of sliding-window attention, 256 keys a side, float32, on two threads of a CPU.

B = 1, H = 12, D = 64, random inputs, random cotangents. Needs torch and transformers, and local-attention for its peer.
See side.py for the command line. Every peer here computes the same band, except `sdpa`, which sees all keys:

- huggingface: transformers' LongformerSelfAttention, its core: the projections hand over queries, keys and values that
  were made beforehand (it scales queries in place, so each call gets its own copy, made off the clock).
- flex: FlexAttention with a sliding-window block mask, compiled; PyTorch has no CPU backward for it.
- local: lucidrains' local-attention, with the exact window.
- sdpa: scaled_dot_product_attention over the full sequence.
"""

from collections.abc import Callable

import torch
import transformers
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

from side import Prepare, main

HEADS, HEAD_DIM, WINDOW = 12, 64, 256


def attention_inputs(work: str, shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_(work == "both") for _ in range(3)]


def timed(work: str, forward: Callable[[], Tensor], inputs: list[Tensor]) -> Callable[[], object]:
    """The call: the forward alone without autograd, or the gradients of the inputs for a random cotangent."""
    if work == "forward":
        return torch.no_grad()(forward)
    cotangent = torch.randn(forward().shape, generator=torch.Generator().manual_seed(1))
    return lambda: torch.autograd.grad(forward(), inputs, cotangent)


def on_heads(attention: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[str, int], Prepare]:
    """The maker for an `attention` of contiguous `[B, H, T, D]` arrays, the layout these peers like best."""

    def make(work: str, length: int) -> Prepare:
        inputs = attention_inputs(work, (1, HEADS, length, HEAD_DIM))
        call = timed(work, lambda: attention(*inputs), inputs)
        return lambda: call

    return make


def make_flex(work: str, length: int) -> Prepare:
    if work == "both":
        raise NotImplementedError("FlexAttention has no backward on CPU")
    mask = torch.compile(create_block_mask)(
        lambda b, h, i, j: (i - j).abs() <= WINDOW, B=None, H=None, Q_LEN=length, KV_LEN=length, device="cpu"
    )
    compiled = torch.compile(flex_attention)
    return on_heads(lambda query, key, value: compiled(query, key, value, block_mask=mask))(work, length)


def make_local(work: str, length: int) -> Prepare:
    from local_attention import LocalAttention

    layer = LocalAttention(WINDOW, look_backward=1, look_forward=1, exact_windowsize=True, use_rotary_pos_emb=False)
    return on_heads(layer)(work, length)


class Given(nn.Module):
    """Stands in for a projection: gives `output`, whatever the hidden states."""

    output: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output


def make_huggingface(work: str, length: int) -> Prepare:
    config = LongformerConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_hidden_layers=1,
        attention_window=[2 * WINDOW],
        attention_probs_dropout_prob=0.0,
    )
    layer = LongformerSelfAttention(config, layer_id=0).eval()
    layer.query, layer.key, layer.value = Given(), Given(), Given()
    inputs = attention_inputs(work, (length, 1, HEADS * HEAD_DIM))
    hidden = inputs[0].detach().transpose(0, 1)
    mask, nowhere = torch.zeros(1, length), torch.zeros(1, length, dtype=torch.bool)

    def forward() -> Tensor:
        return layer(hidden, mask, is_index_masked=nowhere, is_index_global_attn=nowhere, is_global_attn=False)[0]

    def fresh() -> None:
        for projection, given in zip((layer.query, layer.key, layer.value), inputs, strict=True):
            projection.output = given.clone() if projection is layer.query else given

    fresh()
    call = timed(work, forward, inputs)

    def prepare() -> Callable[[], object]:
        fresh()
        return call

    return prepare


MAKERS = {
    "huggingface": make_huggingface,
    "flex": make_flex,
    "local": make_local,
    "sdpa": on_heads(nn.functional.scaled_dot_product_attention),
}

if __name__ == "__main__":
    torch.set_num_threads(2)
    main(MAKERS, torch=torch.__version__, transformers=transformers.__version__)
