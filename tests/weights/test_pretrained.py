"""Checkpoints of transformers into our trees and back."""

import functools
import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint import ENCODER, NAMES, assert_same, config_of, flat, model_of, tensors_of, write
from safetensors.numpy import load_file, save_file

from longformer_jax import (
    ForMaskedLM,
    ForMultipleChoice,
    ForQuestionAnswering,
    ForSequenceClassification,
    ForTokenClassification,
    InputError,
    Longformer,
)
from longformer_jax.weights import load_pretrained, save_pretrained
from longformer_jax.weights.conversion import convert
from longformer_jax.weights.pretrained import find_model


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str, tmp_path: Path, caplog) -> None:
    config, params = load_pretrained(ENCODER / name, model_of(name))
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    save_pretrained(tmp_path, config, params)
    original, saved = tensors_of(name), load_file(tmp_path / "model.safetensors")
    assert saved.keys() == original.keys()
    for key, x in original.items():
        assert x.shape == saved[key].shape and x.tobytes() == saved[key].tobytes(), key
    # Every field that it writes is as transformers wrote it.
    written = json.loads((tmp_path / "config.json").read_text())
    assert written == {key: config_of(name)[key] for key in written}
    config_again, params_again = load_pretrained(tmp_path, model_of(name))
    assert config_again == config
    assert_same(params_again, params)
    assert not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checksums.json", "config.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["LongformerModel", "RobertaModel"])
def test_computes_what_transformers_does(name: str) -> None:
    cases = load_file(ENCODER / name / "cases.safetensors")
    config, params = load_pretrained(ENCODER / name)
    case = "ragged" if name == "RobertaModel" else "globals_differ"
    inputs = {key.split("/")[-1]: x for key, x in cases.items() if key.startswith(f"{case}/inputs/")}
    apply = jax.jit(functools.partial(Longformer(config).apply, max_global_tokens=8))
    output = apply({"params": params}, **inputs)
    mask = inputs["attention_mask"][..., None]
    expected = cases[f"{case}/outputs/last_hidden_state"]
    np.testing.assert_allclose(output.last_hidden_state * mask, expected * mask, atol=1e-4)
    np.testing.assert_allclose(output.pooler_output, cases[f"{case}/outputs/pooler_output"], atol=1e-4)


def test_where_tensors_go() -> None:
    tensors = tensors_of("LongformerForSequenceClassification")
    _, params = load_pretrained(ENCODER / "LongformerForSequenceClassification", ForSequenceClassification)
    params = flat(params)
    layer = "longformer.encoder.layer.1."
    for path, expected in {
        "longformer/word_embeddings/embedding": tensors["longformer.embeddings.word_embeddings.weight"],
        "longformer/embeddings_norm/scale": tensors["longformer.embeddings.LayerNorm.weight"],
        "longformer/layers/value_global/kernel": tensors[layer + "attention.self.value_global.weight"].T,
        "longformer/layers/attention_norm/bias": tensors[layer + "attention.output.LayerNorm.bias"],
        "longformer/layers/mlp_in/kernel": tensors[layer + "intermediate.dense.weight"].T,
        "longformer/layers/mlp_norm/scale": tensors[layer + "output.LayerNorm.weight"],
        "classifier/out_proj/kernel": tensors["classifier.out_proj.weight"].T,
    }.items():
        np.testing.assert_array_equal(params[path][1] if "layers" in path else params[path], expected, path)


@pytest.mark.parametrize("prefix", ["", "roberta.", "longformer."])
def test_prefixes_and_old_names(tmp_path: Path, prefix: str) -> None:
    def rename(tensors: dict) -> None:
        for name in list(tensors):
            new = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[prefix + new] = tensors.pop(name)
        tensors[prefix + "embeddings.position_ids"] = np.arange(66)[None]

    _, expected = load_pretrained(ENCODER / "RobertaModel")
    assert_same(load_pretrained(write(tmp_path, "RobertaModel", rename))[1], expected)


@pytest.mark.parametrize("suffix", ["dense.bias", "LayerNorm.weight"])
def test_two_tensors_of_one_name(tmp_path: Path, suffix: str) -> None:
    """Of which one would win."""
    name = f"encoder.layer.0.attention.output.{suffix}"
    other = name.replace("weight", "gamma") if suffix.endswith("weight") else f"roberta.{name}"

    def twice(tensors: dict) -> None:
        tensors[other] = tensors[name] * 0

    write(tmp_path, "RobertaModel", twice)
    message = f"^the weights have two tensors {name}, one of them as ({other}|{name}); expected one of each"
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("model_type", ["xlm-roberta", "camembert"])
def test_kin_of_roberta(tmp_path: Path, model_type: str) -> None:
    config, params = load_pretrained(write(tmp_path, "RobertaForMaskedLM", model_type=model_type), ForMaskedLM)
    expected_config, expected = load_pretrained(ENCODER / "RobertaForMaskedLM", ForMaskedLM)
    assert config == expected_config and config.attention_mode == "full" and not config.global_projections
    assert_same(params, expected)


def test_a_longformer_that_calls_itself_roberta(tmp_path: Path) -> None:
    """As AI2's notebook writes it, scripts/convert_model_to_long.ipynb of https://github.com/allenai/longformer."""

    def rename(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.replace("longformer.", "roberta.")] = tensors.pop(name)

    write(
        tmp_path,
        "LongformerForMaskedLM",
        rename,
        model_type="roberta",
        architectures=["RobertaLongForMaskedLM"],
        sep_token_id=None,
    )
    config, params = load_pretrained(tmp_path, ForMaskedLM)
    expected_config, expected = load_pretrained(ENCODER / "LongformerForMaskedLM", ForMaskedLM)
    assert config == expected_config and config.attention_window == (4, 8)
    assert_same(params, expected)
    # Its trained global projections come through the converter, and so do its windows.
    convert(tmp_path, tmp_path / "longer", max_length=100)
    config, converted = load_pretrained(tmp_path / "longer", ForMaskedLM)
    assert config.attention_window == (4, 8) and config.max_length == 100
    assert_same(converted["longformer"]["layers"], expected["longformer"]["layers"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("name", ["LongformerModel", "RobertaForTokenClassification"])
def test_what_all_names_begin_with_is_left_out(tmp_path: Path, name: str, prefix: str, caplog) -> None:
    def rename(tensors: dict) -> None:
        tensors |= {prefix + key: tensors.pop(key) for key in list(tensors)}

    write(tmp_path, name, rename)
    assert find_model(tmp_path) is model_of(name)
    params = load_pretrained(tmp_path, model_of(name))[1]
    assert_same(params, load_pretrained(ENCODER / name, model_of(name))[1])
    (record,) = caplog.records
    assert record.getMessage() == f"the names of all tensors in {tmp_path} begin with {prefix!r}, which is left out"


def test_an_encoder_within_another_model(tmp_path: Path) -> None:
    def rename(tensors: dict) -> None:
        tensors |= {f"net.encoder.{key}": tensors.pop(key) for key in list(tensors)}
        tensors["classifier.weight"] = np.zeros((1, 16), np.float32)

    with pytest.raises(InputError, match="is missing.*only some names of tensors begin with 'net.encoder.'; exp"):
        load_pretrained(write(tmp_path, "RobertaModel", rename))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_dtypes_become_float32(tmp_path: Path, dtype) -> None:
    def cast(tensors: dict) -> None:
        tensors |= {name: x.astype(dtype) for name, x in tensors.items()}
        tensors["pooler.dense.bias"][:2] = np.nan, np.inf

    _, params = load_pretrained(write(tmp_path, "RobertaModel", cast))
    _, exact = load_pretrained(ENCODER / "RobertaModel")
    params, exact = flat(params), flat(exact)
    assert np.isnan(params["pooler/bias"][0]) and np.isinf(params["pooler/bias"][1])
    for path, x in params.items():
        if path != "pooler/bias":
            assert x.dtype == np.float32
            np.testing.assert_array_equal(x, exact[path].astype(dtype).astype(np.float32), path)


def test_missing_heads_are_initialised_with_one_warning(caplog) -> None:
    source = ENCODER / "LongformerForMaskedLM"
    config, params = load_pretrained(source, ForSequenceClassification, num_labels=5, seed=1)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith("has no classifier/dense, classifier/out_proj; initialised at random (seed 1)")
    assert config.num_labels == 5
    assert params["classifier"]["out_proj"]["kernel"].shape == (16, 5)
    kernel = np.asarray(params["classifier"]["dense"]["kernel"])
    assert 0.01 < kernel.std() < 0.03 and not np.any(params["classifier"]["dense"]["bias"])
    # By the seed, and as a fresh model has it.
    ids = np.zeros((1, 1), np.int32)
    init = ForSequenceClassification(config).init
    fresh = jax.jit(lambda: init(jax.random.key(1), ids)["params"]["classifier"])()  # all of it takes long to compile
    assert_same(fresh, params["classifier"])


@pytest.mark.parametrize(
    ("name", "model", "missing"),
    [
        ("RobertaForMaskedLM", Longformer, "has no pooler;"),
        ("RobertaModel", ForMaskedLM, "has no lm_head, lm_head/dense, lm_head/norm;"),
        ("RobertaForTokenClassification", ForSequenceClassification, "has no classifier/dense, classifier/out_proj;"),
        ("RobertaForSequenceClassification", ForTokenClassification, "has no classifier;"),
        ("RobertaForSequenceClassification", ForQuestionAnswering, "has no qa_outputs;"),
        ("RobertaForMaskedLM", ForMultipleChoice, "has no classifier, longformer/pooler;"),
    ],
)
def test_other_heads(name: str, model, missing: str, caplog) -> None:
    config, params = load_pretrained(ENCODER / name, model)
    (record,) = caplog.records
    assert missing in record.getMessage()
    shape = (1, 1, 1) if model is ForMultipleChoice else (1, 1)
    expected = jax.eval_shape(model(config).init, jax.random.key(0), np.zeros(shape, np.int32))["params"]
    assert jax.tree.map(lambda x: x.shape, expected) == jax.tree.map(lambda x: x.shape, params)


def test_base_model_of_a_checkpoint_with_head(caplog) -> None:
    _, params = load_pretrained(ENCODER / "LongformerForMultipleChoice")
    _, with_head = load_pretrained(ENCODER / "LongformerForMultipleChoice", ForMultipleChoice)
    assert_same(params, with_head["longformer"])
    assert not caplog.records


def test_a_head_in_part_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "RobertaForMaskedLM", lambda tensors: tensors.pop("lm_head.dense.bias"))
    with pytest.raises(InputError, match="1 tensors differ: lm_head.dense.bias is missing"):
        load_pretrained(tmp_path, ForMaskedLM)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        tensors["embeddings.word_embeddings.weight"] = np.zeros((41, 16), np.float32)
        for layer in range(2):
            del tensors[f"encoder.layer.{layer}.output.dense.weight"]
            tensors[f"encoder.layer.{layer}.intermediate.dense.weight"] = np.zeros((16, 24), np.float32)

    write(tmp_path, "LongformerModel", change)
    with pytest.raises(InputError) as raised:
        load_pretrained(tmp_path)
    assert str(raised.value) == (
        f"the weights in {tmp_path} are not what its config.json describes: 5 tensors differ: "
        "encoder.layer.0.intermediate.dense.weight is [16, 24] instead of [24, 16]; "
        "encoder.layer.1.intermediate.dense.weight is [16, 24] instead of [24, 16]; "
        "encoder.layer.0.output.dense.weight is missing; encoder.layer.1.output.dense.weight is missing; …"
    )


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("RobertaModel", {"num_hidden_layers": 1}, "encoder.layer.1.* is of a layer that is none of the 1"),
        ("RobertaModel", {"num_hidden_layers": 3}, "16 tensors differ: encoder.layer.2.* is missing"),
        ("RobertaModel", {"hidden_size": 32}, r"instead of \["),
        (
            "RobertaModel",
            {"model_type": "longformer"},
            "no global projections, which its config.json promises.*weights.convert makes",
        ),
        ("RobertaForTokenClassification", {}, None),
        ("RobertaForTokenClassification", {"id2label": {"0": "a"}}, r"classifier.bias is \[3\] instead of \[1\]"),
    ],
)
def test_config_of_another_model(tmp_path: Path, name: str, fields: dict, message: str | None) -> None:
    write(tmp_path, name, **fields)
    if message is None:
        assert load_pretrained(tmp_path, model_of(name))[0].num_labels == 3
        return
    with pytest.raises(InputError, match=message):
        load_pretrained(tmp_path, model_of(name))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        tensors["pooler.dense.bias"] = np.zeros(16, np.int64)

    with pytest.raises(InputError, match="pooler.dense.bias is of I64 instead of float32"):
        load_pretrained(write(tmp_path, "RobertaModel", change))


WORDS = "roberta.embeddings.word_embeddings.weight"


def test_tied_output_projection(tmp_path: Path) -> None:
    _, expected = load_pretrained(ENCODER / "RobertaForMaskedLM", ForMaskedLM)

    def twice(tensors: dict) -> None:
        tensors["lm_head.decoder.weight"] = tensors[WORDS].copy()
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].copy()

    def under_the_other_name(tensors: dict) -> None:
        tensors["lm_head.decoder.weight"] = tensors.pop(WORDS)
        tensors["lm_head.decoder.bias"] = tensors.pop("lm_head.bias")

    for change in (twice, under_the_other_name):
        assert_same(load_pretrained(write(tmp_path, "RobertaForMaskedLM", change), ForMaskedLM)[1], expected)

    for name in ("lm_head.decoder.weight", "lm_head.decoder.bias"):

        def untie(tensors: dict, name: str = name) -> None:
            twice(tensors)
            tensors[name][3] += 1

        write(tmp_path, "RobertaForMaskedLM", untie)
        with pytest.raises(InputError, match=rf"{name} in .* is not .*; expected them to be tied, or tie_word_emb"):
            load_pretrained(tmp_path, ForMaskedLM)
        load_pretrained(tmp_path, Longformer)  # has no output projection


def test_an_output_projection_of_its_own(tmp_path: Path) -> None:
    """Words in another order: so must the logits be."""
    order = np.random.default_rng(0).permutation(40)

    def untie(tensors: dict) -> None:
        tensors["lm_head.decoder.weight"] = tensors[WORDS][order]
        tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"][order]

    write(tmp_path / "a", "RobertaForMaskedLM", untie, tie_word_embeddings=False)
    config, params = load_pretrained(tmp_path / "a", ForMaskedLM)
    tied_config, tied = load_pretrained(ENCODER / "RobertaForMaskedLM", ForMaskedLM)
    assert not config.tie_word_embeddings and tied_config.tie_word_embeddings
    ids = np.array([[0, 7, 9, 2]])
    logits = ForMaskedLM(config).apply({"params": params}, ids).logits
    np.testing.assert_array_equal(logits, ForMaskedLM(tied_config).apply({"params": tied}, ids).logits[..., order])
    save_pretrained(tmp_path / "b", config, params)
    saved = load_file(tmp_path / "b" / "model.safetensors")
    np.testing.assert_array_equal(saved["lm_head.decoder.bias"], saved["lm_head.bias"])
    config_again, again = load_pretrained(tmp_path / "b", ForMaskedLM)
    assert config_again == config
    assert_same(again, params)

    write(tmp_path / "a", "RobertaForMaskedLM", tie_word_embeddings=False)
    with pytest.raises(InputError, match="1 tensors differ: lm_head.decoder.weight is missing"):
        load_pretrained(tmp_path / "a", ForMaskedLM)

    def without_embeddings(tensors: dict) -> None:
        untie(tensors)
        del tensors[WORDS]

    write(tmp_path / "a", "RobertaForMaskedLM", without_embeddings, tie_word_embeddings=False)
    with pytest.raises(InputError, match="1 tensors differ: embeddings.word_embeddings.weight is missing"):
        load_pretrained(tmp_path / "a", ForMaskedLM)


def test_a_head_of_another_size(tmp_path: Path, caplog) -> None:
    names = {"0": "neg", "1": "neu", "2": "pos"}
    source = write(tmp_path, "RobertaForSequenceClassification", id2label=names, label2id=None)
    config, params = load_pretrained(source, ForSequenceClassification)
    assert config.id2label == ("neg", "neu", "pos")
    assert load_pretrained(source, ForSequenceClassification, num_labels=3)[0] == config
    with pytest.raises(
        InputError,
        match=f"num_labels is 5, but the classifier in {source} has 3 labels; expected num_labels=3, or ignore_head",
    ):
        load_pretrained(source, ForSequenceClassification, num_labels=5)
    for wrong in (3.0, "3", 0):  # though 3.0 equals the number there is
        with pytest.raises(InputError, match=f"^num_labels is {wrong!r}; expected an integer >= 1$"):
            load_pretrained(source, ForSequenceClassification, num_labels=wrong)  # pyrefly: ignore
    config, other = load_pretrained(source, ForSequenceClassification, num_labels=5, ignore_head=True, seed=2)
    assert (config.num_labels, config.id2label) == (5, None)
    assert other["classifier"]["out_proj"]["kernel"].shape == (16, 5)
    assert_same(other["longformer"], params["longformer"])
    # Of the same size, too.
    config, other = load_pretrained(source, ForSequenceClassification, ignore_head=True, seed=2)
    assert config.id2label == ("neg", "neu", "pos")
    assert 0 < np.abs(other["classifier"]["dense"]["kernel"]).max() < 0.1 and not caplog.records
    with pytest.raises(InputError, match="ignore_head is 1; expected True or False"):
        load_pretrained(source, ignore_head=1)  # pyrefly: ignore


def test_tensors_of_no_use(tmp_path: Path, caplog) -> None:
    def change(tensors: dict) -> None:
        tensors |= {name: np.zeros(1, np.float32) for name in ("vocab_projector.weight", "qa_outputs.bias")}

    with caplog.at_level(logging.INFO):
        load_pretrained(write(tmp_path, "RobertaModel", change))
    (record,) = [record for record in caplog.records if record.name.startswith("longformer_jax")]
    assert record.levelno == logging.INFO and "vocab_projector.weight" in record.getMessage()


def test_weights_of_pytorch(tmp_path: Path) -> None:
    # As tests/golden/torch_files shows, such a file reads as a safetensors one; here the pickle is as it is in a model.
    from torch_archive import state_dict, tensor, write_zip

    tensors = tensors_of("RobertaModel")
    pickled = {}
    for key, (name, x) in enumerate(tensors.items()):
        strides = tuple(stride // 4 for stride in x.strides)
        pickled[name] = tensor(x.size, 0, x.shape, strides, key=str(key))
    write(tmp_path, "RobertaModel")
    (tmp_path / "model.safetensors").unlink()
    write_zip(
        tmp_path / "pytorch_model.bin",
        state_dict(**pickled),
        {str(key): x.tobytes() for key, x in enumerate(tensors.values())},
    )
    assert_same(load_pretrained(tmp_path)[1], load_pretrained(ENCODER / "RobertaModel")[1])


@pytest.mark.parametrize("model", ["ForMaskedLM", None, dict])
def test_models_without_weights(model) -> None:
    with pytest.raises(InputError, match="model is .*; expected one of Longformer, ForMaskedLM"):
        load_pretrained(ENCODER / "RobertaModel", model)


def test_a_directory_without_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no config.json; expected the directory of a model"):
        load_pretrained(tmp_path)
    write(tmp_path, "RobertaModel")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights; expected model.safetensors"):
        load_pretrained(tmp_path)
    save_file({"a": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="37 tensors differ: embeddings.LayerNorm.bias is missing"):
        load_pretrained(tmp_path)


def test_save_checks_params(tmp_path: Path) -> None:
    config, params = load_pretrained(ENCODER / "LongformerModel")
    with pytest.raises(
        InputError,
        match=r"not those of ForMaskedLM: 61 tensors differ: embeddings_norm/bias is \(16,\) instead of absent",
    ):
        save_pretrained(tmp_path / "a", config, params, ForMaskedLM)
    wrong = params | {"pooler": {"kernel": np.zeros((16, 8)), "bias": params["pooler"]["bias"]}}
    with pytest.raises(InputError, match=r"1 tensors differ: pooler/kernel is \(16, 8\) instead of \(16, 16\)"):
        save_pretrained(tmp_path / "a", config, wrong)
    with pytest.raises(InputError, match="stray/bias is .* instead of absent"):
        save_pretrained(tmp_path / "a", config, params | {"stray": {"bias": np.zeros(1)}})
    assert not (tmp_path / "a").exists()
    # Without the pooler it is a model still.
    del params["pooler"]
    save_pretrained(tmp_path / "a", config, params)
    assert load_file(tmp_path / "a" / "model.safetensors").keys() == tensors_of("LongformerModel").keys() - {
        "pooler.dense.weight",
        "pooler.dense.bias",
    }


def test_save_one_layer(tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        for name in list(tensors):
            if "layer.1." in name:
                del tensors[name]

    write(tmp_path / "a", "RobertaForQuestionAnswering", change, num_hidden_layers=1)
    config, params = load_pretrained(tmp_path / "a", ForQuestionAnswering)
    save_pretrained(tmp_path / "b", config, params, ForQuestionAnswering)
    assert_same(load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors"))
