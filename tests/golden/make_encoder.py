"""Makes tests/golden/encoder: small random models of transformers, their inputs, outputs and gradients.

  python tests/golden/make_encoder.py    in an environment with torch and transformers (2.13.0 and 5.24.0 were used)

Each directory is what transformers' `save_pretrained` writes, and cases.safetensors with, for each case,
`CASE/inputs/…`, `CASE/outputs/…` and for the case that has them `CASE/cotangent` and `CASE/gradients/…`. All is
float32: in float64 transformers' masks overflow to NaN.
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).parent / "encoder"
VOCAB, PAD, BOS, SEP = 40, 1, 0, 2
SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=66,
    layer_norm_eps=1e-5,
    pad_token_id=PAD,
    bos_token_id=BOS,
    eos_token_id=SEP,
    type_vocab_size=2,
)
LONGFORMER = transformers.LongformerConfig(**SIZES, sep_token_id=SEP, attention_window=[4, 8])
ROBERTA = transformers.RobertaConfig(**SIZES, attn_implementation="eager")
OPTIONAL = ("hidden_states", "attentions", "global_attentions")


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights of a size at which attention is far from uniform; all representable in float32."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale, mean = (0.2, 1.0) if "LayerNorm.weight" in name or "layer_norm.weight" in name else (0.3, 0.0)
        parameter.data = mean + scale * noise
    model.tie_weights()


def tokens(generator, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ids = torch.randint(4, VOCAB, mask.shape, generator=generator)
    ids[:, 0] = BOS
    return torch.where(mask, ids, PAD), mask.long()


def question(generator, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three separators in each row, as transformers demands of a question and its text."""
    ids, mask = tokens(generator, lengths)
    for row, length in zip(ids, lengths, strict=True):
        end = 3 + length % 3
        row[[end, end + 1, length - 1]] = SEP
    return ids, mask


def cases(is_roberta: bool) -> dict[str, dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(0)

    def case(lengths, global_positions=None, types=False, with_mask=True):
        ids, mask = tokens(g, lengths)
        inputs = {"input_ids": ids}
        if with_mask:
            inputs["attention_mask"] = mask
        if global_positions is not None and not is_roberta:
            inputs["global_attention_mask"] = torch.zeros_like(ids)
            for row, positions in enumerate(global_positions):
                inputs["global_attention_mask"][row, positions] = 1
        if types:
            inputs["token_type_ids"] = torch.randint(0, 2, ids.shape, generator=g)
        return inputs

    return {
        "multiple_of_window": case([32, 32], with_mask=False),
        "ragged": case([37, 20, 9], types=True),
        "one_token": case([1]),
        "shorter_than_window": case([3, 2], [[0], [1]]),
        "one_global": case([29], [[0]], with_mask=False),
        "globals_differ": case([41, 23, 11], [[0, 1, 2, 17, 40], [5], []], types=True),
        "global_in_padding": case([30, 12], [[3, 4], [0, 20]]),
        "many_globals": case([33, 27], [list(range(0, 33, 2)), list(range(20))]),
        "all_global": case([9], [list(range(9))]),
    }


def save(model, name: str, all_cases: dict, differentiated: tuple[str, ...]) -> None:
    directory = ROOT / name
    model.eval().save_pretrained(directory)
    tensors = {}
    generator = torch.Generator().manual_seed(1)
    for case, inputs in all_cases.items():
        with torch.no_grad():
            optional = {option: name.endswith("Model") for option in ("output_hidden_states", "output_attentions")}
            outputs = model(**inputs, **optional)
        tensors |= {f"{case}/inputs/{key}": value.int() for key, value in inputs.items()}
        for key, value in outputs.items():
            if key in OPTIONAL:
                tensors |= {f"{case}/outputs/{key}/{layer}": x for layer, x in enumerate(value)}
            elif isinstance(value, torch.Tensor):
                tensors[f"{case}/outputs/{key}"] = value
    # Of the last case, the gradient of a random combination of all that is no padding.
    model.zero_grad()
    outputs = model(**inputs)
    loss = 0.0
    for key in differentiated:
        value = outputs[key]
        cotangent = torch.randn(value.shape, generator=generator)
        mask = inputs.get("attention_mask")
        if mask is not None and value.shape[: mask.ndim] == mask.shape:
            cotangent *= mask.reshape(mask.shape + (1,) * (value.ndim - mask.ndim))
        tensors[f"{case}/cotangent/{key}"] = cotangent
        loss = loss + (value * cotangent).sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        gradient = parameter.grad
        tensors[f"{case}/gradients/{key}"] = torch.zeros_like(parameter) if gradient is None else gradient
    tensors = {k: (v if v.dtype == torch.int32 else v.detach()).clone().contiguous() for k, v in tensors.items()}
    save_file(tensors, directory / "cases.safetensors")


def main() -> None:
    for is_roberta, config in ((False, LONGFORMER), (True, ROBERTA)):
        prefix = "Roberta" if is_roberta else "Longformer"
        every = cases(is_roberta)
        ragged = "ragged" if is_roberta else "globals_differ"
        few = {ragged: every[ragged]}
        # Padding that is attended to: its rows of the tables get no gradient but that of the tied output projection.
        padding_seen = {"padding_seen": {key: x for key, x in every[ragged].items() if key != "attention_mask"}}
        if is_roberta:
            every = {case: every[case] for case in ("multiple_of_window", "one_token", "ragged")}
        else:
            every = {case: every[case] for case in every if case != ragged} | few
        g = torch.Generator().manual_seed(2)
        ids, mask = question(g, [37, 21])
        asked = {"question": {"input_ids": ids, "attention_mask": mask}}
        rows, masks = zip(*(question(g, [25, 17]) for _ in range(3)), strict=True)
        choices = {"choices": {"input_ids": torch.stack(rows, 1), "attention_mask": torch.stack(masks, 1)}}
        first = {"ragged": cases(True)["ragged"]}  # without a global mask: the default of the head
        heads = {
            "Model": (every, ("last_hidden_state", "pooler_output")),
            "ForMaskedLM": (few | padding_seen, ("logits",)),
            "ForSequenceClassification": (first, ("logits",)),
            "ForTokenClassification": (few, ("logits",)),
            "ForQuestionAnswering": (asked, ("start_logits", "end_logits")),
            "ForMultipleChoice": (choices, ("logits",)),
        }
        for seed, (head, (head_cases, differentiated)) in enumerate(heads.items()):
            config.num_labels = 2 if head == "ForQuestionAnswering" else 3
            model = getattr(transformers, prefix + head)(config)
            randomize(model, seed)
            save(model, f"{prefix}{head}", head_cases, differentiated)


if __name__ == "__main__":
    main()
