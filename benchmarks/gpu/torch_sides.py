"""PyTorch's sides of part 2: Hugging Face's Longformer, FlexAttention and FlashAttention, where they are installed."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.timing import measure_torch

if TYPE_CHECKING:
    from benchmarks.gpu.speed import Layer

Side = Callable[[str], Callable[[], dict[str, float]]]  # compiles one kind of work, returns what measures it


def _side(layer: "Layer", attention: Callable[..., Any], layout: str) -> Side:
    """attention(query, key, value) of arrays [1, T, H, D] ("bthd") or [1, H, T, D] ("bhtd"), each contiguous."""
    import torch

    shape = (layer.length, layer.heads) if layout == "bthd" else (layer.heads, layer.length)
    generator = torch.Generator("cuda").manual_seed(0)

    def array(grad: bool) -> Any:
        x = torch.randn((1, *shape, layer.head_dim), generator=generator, device="cuda", dtype=torch.bfloat16)
        return x.requires_grad_(grad)

    def prepare(work: str) -> Callable[[], dict[str, float]]:
        inputs = [array(work == "both") for _ in range(3)]
        cotangent = array(False)

        def run() -> Any:
            if work == "forward":
                with torch.no_grad():
                    return attention(*inputs)
            return torch.autograd.grad(attention(*inputs), inputs, cotangent)

        run()  # compiles
        torch.cuda.synchronize()
        return lambda: measure_torch(run)

    return prepare


def flex(layer: "Layer") -> Side:
    """FlexAttention with a block mask of the band, compiled; the mask is made beforehand."""
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    right = 0 if layer.causal else layer.window

    def visible(b: Any, h: Any, i: Any, j: Any) -> Any:
        distance, d = j - i, layer.dilation
        near = (distance >= -layer.window * d) & (distance <= right * d)
        return near & (distance % d == 0) if d > 1 else near

    torch.compiler.reset()
    make_mask, T = torch.compile(create_block_mask), layer.length
    mask = make_mask(visible, B=None, H=None, Q_LEN=T, KV_LEN=T, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return _side(layer, lambda q, k, v: compiled(q, k, v, block_mask=mask), "bhtd")


def flash(layer: "Layer") -> Side:
    """FlashAttention with its sliding window."""
    if layer.dilation > 1:
        raise NotImplementedError("FlashAttention has no dilation")
    from flash_attn import flash_attn_func

    right = 0 if layer.causal else layer.window
    return _side(layer, lambda q, k, v: flash_attn_func(q, k, v, window_size=(layer.window, right)), "bthd")


def huggingface(layer: "Layer") -> Side:
    """transformers' LongformerSelfAttention without its projections; both sides, no dilation."""
    if layer.causal or layer.dilation > 1 or layer.length > 65536:
        raise NotImplementedError("Hugging Face's layer looks to both sides without dilation; left out beyond 65536")
    import torch
    from torch import nn
    from transformers.models.longformer.modeling_longformer import LongformerConfig, LongformerSelfAttention

    class Given(nn.Module):
        """Stands in for a projection."""

        def forward(self, hidden: Any) -> Any:
            return self.output

    E = layer.heads * layer.head_dim
    config = LongformerConfig(
        hidden_size=E, num_attention_heads=layer.heads, num_hidden_layers=1, attention_window=[2 * layer.window],
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    module = LongformerSelfAttention(config, layer_id=0).eval().cuda().to(torch.bfloat16)
    module.query, module.key, module.value = Given(), Given(), Given()
    T = layer.length
    mask = torch.zeros(1, T, device="cuda", dtype=torch.bfloat16)
    nowhere = torch.zeros(1, T, dtype=torch.bool, device="cuda")

    def attention(query: Any, key: Any, value: Any) -> Any:
        # It scales queries in place: a copy each time, of 1.5 KB a token.
        given_to = (module.query, query.clone()), (module.key, key), (module.value, value)
        for projection, given in given_to:
            projection.output = given.reshape(1, T, E).transpose(0, 1)
        options = {"is_index_masked": nowhere, "is_index_global_attn": nowhere, "is_global_attn": False}
        return module(query.reshape(1, T, E), mask, **options)[0].reshape(1, T, layer.heads, layer.head_dim)

    return _side(layer, attention, "bthd")


SIDES: dict[str, Callable[["Layer"], Side]] = {"flex": flex, "flash_attention": flash, "huggingface": huggingface}
