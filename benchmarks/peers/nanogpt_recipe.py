"""nanoGPT's published CPU recipe for characters of tiny Shakespeare, as a yardstick for the quickstart; needs torch.

    python benchmarks/peers/nanogpt_recipe.py

The recipe (the README of github.com/karpathy/nanoGPT, "I only have a macbook"): 4 layers, 4 heads, 128 wide, context
64, batch 12, 2,000 steps, no dropout, AdamW (0.9, 0.99), weight decay 0.1 on matrices, gradients clipped to 1, rate
1e-3 after 100 steps of warm-up and then by a cosine to 1e-4, every 250 steps a loss over 20 batches of either split;
no biases, learned positions, tied embedding, not compiled. Written anew here, in float32 on two threads; checkpoints
are not saved. Prints JSON: wall seconds, and the loss on validation as published and over the whole split, both by
blocks of 64 (as the recipe samples them) and with at least 48 characters of context for every character.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
WARM_UP, RATE, LAST_RATE, WEIGHT_DECAY, CLIP = 100, 1e-3, 1e-4, 0.1, 1.0
EVAL_EVERY, EVAL_BATCHES = 250, 20
TEXT = Path(__file__).resolve().parents[2] / "longformer_jax" / "data" / "tiny_shakespeare.txt"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH, bias=False)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.attention_out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mlp_norm = nn.LayerNorm(WIDTH, bias=False)
        self.mlp_in = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.mlp_out = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(x))))


class Transformer(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                into_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * LAYERS) if into_residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return self.norm(self.blocks(x)) @ self.tokens.weight.T

    def losses(self, windows: Tensor) -> Tensor:
        """Nats of every character after the first, `[B, T]`, for windows `[B, T + 1]`."""
        return functional.cross_entropy(self.forward(windows[:, :-1]).transpose(1, 2), windows[:, 1:], reduction="none")


def learning_rate(step: int) -> float:
    if step < WARM_UP:
        return RATE * (step + 1) / (WARM_UP + 1)
    progress = (step - WARM_UP) / (STEPS - WARM_UP)
    return LAST_RATE + 0.5 * (1 + math.cos(math.pi * progress)) * (RATE - LAST_RATE)


def random_batch(split: Tensor) -> Tensor:
    starts = torch.randint(len(split) - CONTEXT, (BATCH, 1))
    return split[starts + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def sampled_loss(model: Transformer, split: Tensor) -> float:
    return sum(model.losses(random_batch(split)).mean().item() for _ in range(EVAL_BATCHES)) / EVAL_BATCHES


@torch.no_grad()
def whole_loss(model: Transformer, split: Tensor, stride: int) -> float:
    """Mean nats over the split, every character but the first scored once; windows move on by `stride` characters."""
    last = len(split) - 1
    ends = torch.arange(CONTEXT, last + stride, stride).clamp(max=last)
    total = 0.0
    for end, scored in zip(ends.split(256), torch.cat([torch.tensor([0]), ends[:-1]]).split(256), strict=True):
        positions = (end - CONTEXT)[:, None] + torch.arange(CONTEXT + 1)
        total += model.losses(split[positions])[positions[:, 1:] > scored[:, None]].sum().item()
    return total / last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1337)
    options = parser.parse_args()
    torch.set_num_threads(2)
    torch.manual_seed(options.seed)

    text = TEXT.read_bytes()
    vocab = sorted(set(text))
    tokens = torch.tensor([vocab.index(byte) for byte in text])
    train, validation = tokens.split([int(0.9 * len(tokens)), len(tokens) - int(0.9 * len(tokens))])

    started, evaluating = time.perf_counter(), 0.0
    model = Transformer(len(vocab))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99))
    history = []
    for step in range(STEPS + 1):  # the published loop takes one step more than it says
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        if step % EVAL_EVERY == 0:
            paused = time.perf_counter()
            history.append([step, sampled_loss(model, train), sampled_loss(model, validation)])
            evaluating += time.perf_counter() - paused
        loss = model.losses(random_batch(train)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started

    blocks, full_context = whole_loss(model, validation, CONTEXT), whole_loss(model, validation, CONTEXT // 4)
    report = {
        "steps": STEPS,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "seconds_without_evaluations": seconds - evaluating,
        "history": history,
        "validation_nats": {"sampled": history[-1][2], "blocks": blocks, "context_48_to_64": full_context},
        "torch": torch.__version__,
    }
    report["validation_bpc"] = {name: nats / math.log(2) for name, nats in report["validation_nats"].items()}
    print(json.dumps(report))


if __name__ == "__main__":
    main()
