"""Checks that transformers loads what `save_pretrained` and the converter write, and computes the same with it.

  .venv/bin/python tests/golden/check_export.py write DIR     (this project's environment)
  python tests/golden/check_export.py read DIR                (an environment with torch and transformers)

Every model of tests/golden/encoder, a converted RoBERTa, a Longformer with rows for more tokens, and the tokenizers of
tests/golden/tokenizer: what the converter carries over and what training writes. Passed with torch 2.13.0 and
transformers 5.24.0.
"""

import json
import pathlib
import shutil
import sys

import numpy as np

ENCODER = pathlib.Path(__file__).parent / "encoder"
CONVERTED, RESIZED = "converted", "resized"
TOKENIZERS = ENCODER.parent / "tokenizer"
VARIANTS = json.loads((TOKENIZERS / "variants.json").read_text(encoding="utf-8"))


def token_ids() -> np.ndarray:
    ids = np.random.default_rng(0).integers(4, 40, (2, 90))
    ids[1, 70:] = 1
    return ids


def write_tokenizers(out: pathlib.Path) -> None:
    """Converted, and saved as training saves its model's."""
    from longformer_jax.weights import load_tokenizer
    from longformer_jax.weights.conversion import convert
    from longformer_jax.weights.tokenizer import save_tokenizer

    model = ENCODER / "RobertaModel"
    for name, variant in VARIANTS.items():
        source = out / "sources" / name
        source.mkdir(parents=True)
        for file in ("vocab.json", "merges.txt"):
            shutil.copy(TOKENIZERS / file, source)
        for file, values in variant["files"].items():
            if values is None:
                (source / file).unlink(missing_ok=True)
            else:
                (source / file).write_text(json.dumps(values), encoding="utf-8")
        config = json.loads((model / "config.json").read_text())
        kind = variant["files"]["config.json"]["model_type"].replace("longformer", "roberta")  # as the weights are
        (source / "config.json").write_text(json.dumps(config | {"model_type": kind}))
        shutil.copy(model / "model.safetensors", source)
        convert(source, out / "converted_tokenizers" / name, max_length=100, format="safetensors")
        saved = out / "saved_tokenizers" / name
        saved.mkdir(parents=True)
        shutil.copy(out / CONVERTED / "config.json", saved)
        save_tokenizer(saved, load_tokenizer(source), 100)


def write(out: pathlib.Path) -> None:
    from longformer_jax import ForMaskedLM
    from longformer_jax.weights import load_pretrained, resize_vocab, save_pretrained
    from longformer_jax.weights.conversion import convert
    from longformer_jax.weights.pretrained import find_model

    for directory in sorted(ENCODER.iterdir()):
        config, params = load_pretrained(directory, find_model(directory))
        save_pretrained(out / directory.name, config, params)
    convert(ENCODER / "RobertaForMaskedLM", out / CONVERTED, max_length=100, attention_window=8, format="safetensors")
    config, params = load_pretrained(ENCODER / "LongformerForMaskedLM", ForMaskedLM)
    save_pretrained(out / RESIZED, *resize_vocab(config, params, 43))
    ids = token_ids()
    is_global = np.zeros_like(ids)
    is_global[:, :2] = 1
    for name in (CONVERTED, RESIZED):
        config, params = load_pretrained(out / name, ForMaskedLM)
        rows = [x[:, : config.max_length] for x in (ids, ids != 1, is_global)]
        np.save(out / f"{name}.npy", ForMaskedLM(config).apply({"params": params}, *rows).logits)
    write_tokenizers(out)


def read_tokenizers(out: pathlib.Path) -> None:
    import transformers

    for kind in ("converted_tokenizers", "saved_tokenizers"):
        for name, variant in VARIANTS.items():
            tokenizer = transformers.AutoTokenizer.from_pretrained(out / kind / name)
            for text, ids in variant["ids"]:
                found = tokenizer(text) if isinstance(text, str) else tokenizer(*text)
                assert found["input_ids"] == ids, (kind, name, text, ids, found["input_ids"])
            assert kind == "converted_tokenizers" or tokenizer.mask_token == "<mask>"
            print(kind, name, type(tokenizer).__name__, "the same ids")


def read(out: pathlib.Path) -> None:
    import torch
    import transformers

    def load(directory: pathlib.Path):
        name = json.loads((directory / "config.json").read_text())["architectures"][0]
        model, info = getattr(transformers, name).from_pretrained(directory, output_loading_info=True)
        print(directory.name, name, info)
        assert not any(info.values())
        return model.eval()

    for directory in sorted(ENCODER.iterdir()):
        ours, theirs = load(out / directory.name), load(directory)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        for key, x in theirs.state_dict().items():
            assert torch.equal(x, ours.state_dict()[key]), key
        different = {
            key: (x, ours.config.to_dict().get(key))
            for key, x in theirs.config.to_dict().items()
            if x != ours.config.to_dict().get(key) and key != "_name_or_path"
        }
        assert not different, different
    for automatic in (transformers.AutoModel, transformers.AutoModelForMaskedLM):
        automatic.from_pretrained(out / "LongformerForMaskedLM")
    for name in (CONVERTED, RESIZED):
        model = load(out / name)
        ids = torch.tensor(token_ids())[:, : model.config.max_position_embeddings - 2]
        is_global = torch.zeros_like(ids)
        is_global[:, :2] = 1
        mask = (ids != 1).long()
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, global_attention_mask=is_global).logits
        difference = np.abs(logits.numpy() - np.load(out / f"{name}.npy"))[mask.bool().numpy()].max()
        print(f"{name}: {list(logits.shape)}, largest difference of a logit {difference:.1e}")
        assert difference < 1e-4
    read_tokenizers(out)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
