"""RoBERTa to Longformer."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from checkpoint import ENCODER, assert_same, flat, write
from tokenizers import Tokenizer

from longformer_jax import CharLMConfig, ForMaskedLM, ForSequenceClassification, InputError, Longformer, init_cache
from longformer_jax.weights import (
    command,
    load_pretrained,
    load_tokenizer,
    resize_vocab,
    roberta_to_longformer,
    save_pretrained,
)
from longformer_jax.weights.conversion import convert
from longformer_jax.weights.pretrained import save_converted
from tests.data.tiny_tokenizer import tiny_tokenizer

ROBERTA = ENCODER / "RobertaForMaskedLM"  # 66 rows, 2 of them reserved


def positions_of(params) -> np.ndarray:
    return np.asarray(params.get("longformer", params)["position_embeddings"]["embedding"])


@pytest.fixture(scope="module")
def roberta():
    return load_pretrained(ROBERTA, ForMaskedLM)


@pytest.mark.parametrize("max_length", [64, 65, 128, 200, 511])
def test_positions_are_copied(roberta, max_length: int) -> None:
    config, params = roberta_to_longformer(*roberta, max_length=max_length)
    old, new = positions_of(roberta[1]), positions_of(params)
    assert len(new) == config.max_position_embeddings == max_length + 2
    assert config.max_length == max_length
    # AI2's loop.
    expected = np.empty((max_length + 2, 16), np.float32)
    expected[:2] = old[:2]
    k = 2
    while k < max_length + 2:
        expected[k : k + 64] = old[2 : 2 + max_length + 2 - k]
        k += 64
    np.testing.assert_array_equal(new, expected)


def test_random_positions(roberta) -> None:
    old = positions_of(roberta[1])
    config, params = roberta_to_longformer(*roberta, max_length=2000, positions="random", seed=3)
    new = positions_of(params)
    np.testing.assert_array_equal(new[:66], old)
    assert new.shape == (2002, 16) and new.dtype == np.float32
    assert abs(new[66:].std() / config.initializer_range - 1) < 0.03 and abs(new[66:].mean()) < 0.001
    _, same = roberta_to_longformer(*roberta, max_length=2000, positions="random", seed=3)
    assert_same(same, params)
    _, other = roberta_to_longformer(*roberta, max_length=2000, positions="random", seed=4)
    assert np.all(positions_of(other)[66:] != new[66:])


def test_everything_else_stays(roberta) -> None:
    before = jax.tree.map(np.array, roberta[1])
    config, params = roberta_to_longformer(*roberta, max_length=128, attention_window=(8, 32))
    assert_same(roberta[1], before)
    assert config == dataclasses.replace(
        roberta[0],
        max_position_embeddings=130,
        attention_window=(8, 32),
        attention_mode="sliding_window",
        global_projections=True,
    )
    before, after = flat(before), flat(params)
    for path, x in after.items():
        if path != "longformer/position_embeddings/embedding":
            np.testing.assert_array_equal(x, before[path.replace("_global", "")], path)
    added = {
        f"longformer/layers/{name}_global/{leaf}" for name in ("query", "key", "value") for leaf in ("kernel", "bias")
    }
    assert after.keys() == before.keys() | added
    shapes = jax.eval_shape(ForMaskedLM(config).init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, params)


def test_parameters_can_be_donated() -> None:
    config, params = roberta_to_longformer(*load_pretrained(ROBERTA, ForMaskedLM), max_length=65)
    _, larger = resize_vocab(config, params, 41)
    for tree in (params, larger, load_pretrained(ROBERTA, ForMaskedLM)[1], init_cache(CharLMConfig(num_layers=1), 1)):
        leaves = [x for x in jax.tree.leaves(tree) if x.ndim]
        assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)
    expected = np.asarray(params["longformer"]["layers"]["query_global"]["kernel"]) * 2
    doubled = jax.jit(lambda p: jax.tree.map(lambda x: x * 2, p), donate_argnums=0)(params)
    np.testing.assert_array_equal(doubled["longformer"]["layers"]["query_global"]["kernel"], expected)


def test_within_its_window_it_computes_what_roberta_does(roberta) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 40, (2, 30))
    mask = np.arange(30) < np.array([[30], [21]])
    ids = np.where(mask, ids, 1)
    expected = jax.jit(ForMaskedLM(roberta[0]).apply)({"params": roberta[1]}, ids, mask).logits
    config, params = roberta_to_longformer(*roberta, max_length=100, attention_window=60)
    is_global = np.zeros_like(mask)
    is_global[:, [0, 5]] = True
    apply = jax.jit(functools.partial(ForMaskedLM(config).apply, max_global_tokens=2))
    for global_mask in (is_global, np.zeros_like(is_global)):
        logits = apply({"params": params}, ids, mask, global_mask).logits
        np.testing.assert_allclose(logits[mask], expected[mask], atol=1e-4)


def test_a_longformer_is_lengthened() -> None:
    longformer = load_pretrained(ENCODER / "LongformerModel")
    config, params = roberta_to_longformer(*longformer, max_length=100)
    assert config == dataclasses.replace(longformer[0], max_position_embeddings=102)
    old = positions_of(longformer[1])
    np.testing.assert_array_equal(positions_of(params), np.concatenate([old, old[2:38]]))
    del params["position_embeddings"], longformer[1]["position_embeddings"]
    assert_same(params, longformer[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 63}, "max_length is 63; expected at least 64, which the position table serves already"),
        ({"max_length": "4096"}, "max_length is '4096'; expected at least 64"),
        ({"attention_window": 7}, "attention_window is 7; expected even numbers"),
        ({"attention_window": (8, 8, 8)}, "attention_window has 3 entries; expected one for each of the 2 layers"),
        ({"max_length": 10**12}, "max_position_embeddings is 1000000000002; expected at most 16777216"),
        ({"seed": -1}, r"seed is -1; expected an integer from 0 to 2\*\*32 - 1"),
        ({"seed": 10**30}, r"seed is 10+; expected an integer from 0 to 2\*\*32 - 1"),
        ({"positions": "zero"}, "positions is 'zero'; expected one of copied, random"),
    ],
)
def test_bad_arguments(roberta, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        roberta_to_longformer(*roberta, **{"max_length": 128} | arguments)


def run(*arguments: object, capsys) -> str:
    """What the command line says before it exits with 2."""
    with pytest.raises(SystemExit) as raised:
        command.run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert raised.value.code == 2 and captured.out == "" and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_command_line(tmp_path: Path, roberta, format: str, capsys, caplog) -> None:
    source = write(tmp_path / "source", "RobertaForMaskedLM")
    (source / "vocab.json").write_text("{}")
    (source / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, "errors": "strict"}))
    out = tmp_path / "new" / "out"
    command.run([str(source), str(out), "--max_length=100", "--attention_window=8,16", f"--format={format}"])
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    weights = "params" if format == "orbax" else "model.safetensors"
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["checksums.json", "config.json", "tokenizer_config.json", "vocab.json", weights]
    )
    assert json.loads((out / "tokenizer_config.json").read_text()) == {
        **{"model_max_length": 100, "errors": "strict", "tokenizer_class": "RobertaTokenizer"}
    }

    config, params = load_pretrained(out, ForMaskedLM)
    expected_config, expected = roberta_to_longformer(*roberta, max_length=100, attention_window=(8, 16))
    assert config == expected_config
    assert_same(params, expected)
    assert not caplog.records

    assert "out is" in run(source, out, capsys=capsys)


def test_converted_weights_for_other_models(tmp_path: Path, roberta, caplog) -> None:
    config, params = roberta_to_longformer(*roberta, max_length=128)
    save_converted(tmp_path, config, params)
    new_config, new = load_pretrained(tmp_path, ForSequenceClassification, num_labels=4)
    assert new_config == dataclasses.replace(config, num_labels=4)
    assert_same(new["longformer"], params["longformer"])
    assert new["classifier"]["out_proj"]["kernel"].shape == (16, 4)
    _, base = load_pretrained(tmp_path)
    assert_same({"pooler": base["pooler"], **params["longformer"]}, base)
    assert [record.getMessage().split(";")[0].split(" has ")[1] for record in caplog.records] == [
        "no classifier/dense, classifier/out_proj",
        "no pooler",
    ]
    # It can be lengthened again, and its name says what it is.
    out = tmp_path / "longer"
    convert(tmp_path, out, max_length=150)
    assert load_pretrained(out, ForMaskedLM)[0].max_length == 150
    (tmp_path / "checksums.json").unlink()
    config_json = tmp_path / "config.json"
    config_json.write_text(config_json.read_text().replace("LongformerForMaskedLM", "Other"))
    with pytest.raises(InputError, match=r"architectures is \['Other'\]; expected the name of a Longformer"):
        load_pretrained(tmp_path)


def test_converted_head_of_another_shape(tmp_path: Path) -> None:
    model = ForSequenceClassification
    config, params = load_pretrained(ENCODER / "LongformerForSequenceClassification", model)
    save_converted(tmp_path, config, params)
    assert_same(load_pretrained(tmp_path, model)[1], params)
    with pytest.raises(InputError, match="num_labels is 5, but the classifier in .* has 3 labels; expected num_"):
        load_pretrained(tmp_path, model, num_labels=5)
    config, other = load_pretrained(tmp_path, model, num_labels=5, ignore_head=True)
    assert other["classifier"]["out_proj"]["kernel"].shape == (16, 5)
    assert_same(other["longformer"], params["longformer"])
    file = max(
        (path for path in (tmp_path / "params").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        load_pretrained(tmp_path, model)


@pytest.mark.parametrize(
    ("name", "model"),
    [("RobertaForSequenceClassification", ForSequenceClassification), ("RobertaModel", Longformer)],
)
def test_the_head_comes_along(tmp_path: Path, name: str, model, caplog) -> None:
    convert(ENCODER / name, tmp_path / "out", max_length=128)
    _, params = load_pretrained(tmp_path / "out", model)
    _, expected = roberta_to_longformer(*load_pretrained(ENCODER / name, model), max_length=128)
    assert_same(params, expected)
    assert not caplog.records


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_an_encoder_without_a_pooler_gets_none(tmp_path: Path, format: str, caplog) -> None:
    """Else a random one would be taken for trained later."""
    config, params = load_pretrained(ENCODER / "RobertaModel")
    save_pretrained(tmp_path / "in", config, {name: leaf for name, leaf in params.items() if name != "pooler"})
    convert(tmp_path / "in", tmp_path / "out", max_length=128, format=format)
    assert not caplog.records
    load_pretrained(tmp_path / "out")
    assert [message.split(";")[0] for message in caplog.messages] == [f"{tmp_path / 'out'} has no pooler"]


def test_heads_that_do_not_come_along_are_named(tmp_path: Path, caplog) -> None:
    def more(tensors: dict) -> None:
        for name in ("pooler.dense", "qa_outputs"):
            tensors[f"{name}.weight"], tensors[f"{name}.bias"] = np.zeros((16, 16)), np.zeros(16)

    convert(write(tmp_path / "in", "RobertaForMaskedLM", more), tmp_path / "out", max_length=128)
    assert load_pretrained(tmp_path / "out", ForMaskedLM)[1].keys() == {"longformer", "lm_head"}
    assert caplog.messages == [f"{tmp_path / 'in'} also has pooler, qa_outputs, which {tmp_path / 'out'} does not get"]


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_integers_of_numpy(tmp_path: Path, format: str) -> None:
    source = write(tmp_path / "source", "RobertaModel")
    tiny_tokenizer().save(str(source / "tokenizer.json"))
    numbers = {"max_length": 128, "attention_window": 8, "seed": 3}
    for name, integer in (("plain", int), ("numpy", np.int64)):
        integers = {field: integer(number) for field, number in numbers.items()}
        convert(source, tmp_path / name, positions="random", format=format, **integers)
    for file in ("config.json", "tokenizer_config.json", "tokenizer.json"):
        assert (tmp_path / "numpy" / file).read_text() == (tmp_path / "plain" / file).read_text()
    assert_same(load_pretrained(tmp_path / "numpy")[1], load_pretrained(tmp_path / "plain")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": "128"}, "^max_length is '128'; expected an integer >= 1"),
        ({"max_length": 128.0}, "^max_length is 128.0; expected an integer >= 1"),
        ({"max_length": 10**12}, "^max_length is 1000000000000; expected at most 16777216"),
        ({"seed": True}, "^seed is True; expected an integer from 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_read(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "none", tmp_path / "out", **arguments)


def test_errors_of_the_command_line(tmp_path: Path, capsys) -> None:
    for arguments, message in [
        ((), "error: the following arguments are required: source, out\n"),
        ((ROBERTA, tmp_path / "out", "--max_length=x"), "error: argument --max_length: invalid int value: 'x'\n"),
        (
            (ROBERTA, tmp_path / "out", "--attention_window=8,"),
            "error: argument --attention_window: it is '8,'; expected a whole number, or one for each layer",
        ),
        ((ROBERTA, tmp_path / "out", "--max_length=63"), "error: max_length is 63; expected at least 64"),
        ((ROBERTA, tmp_path / "out", "--format=pickle"), "error: argument --format: invalid choice"),
        ((tmp_path / "none", tmp_path / "out"), "error: source is '.*none', which is no directory"),
        ((tmp_path, tmp_path / "out"), "error: .* holds no weights; expected model.safetensors"),
    ]:
        said = run(*arguments, capsys=capsys)
        assert re.match(message, said), said
        assert not list(tmp_path.iterdir())


def test_damaged_tokenizer(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "RobertaModel")
    for name, text in (("tokenizer_config.json", "[]"), ("tokenizer.json", "{"), ("tokenizer.json", "[" * 200_000)):
        (source / name).write_text(text)
        with pytest.raises(InputError, match=f"{name} is damaged"):
            convert(source, tmp_path / "out", max_length=128)
        (source / name).unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_tokenizer_no_longer_cuts_at_the_old_length(tmp_path: Path) -> None:
    source = write(tmp_path / "source", "RobertaModel")
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(source / "tokenizer.json"))
    convert(source, tmp_path / "out", max_length=128)
    text = "a b c " * 20
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert load_tokenizer(tmp_path / "out").encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids
    assert Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json")).to_str() == tokenizer.to_str()


TOKENIZERS = json.loads((ENCODER.parent / "tokenizer" / "variants.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "source_class", "expected_class"),
    [
        ("xlm_roberta", "XLMRobertaTokenizer", "XLMRobertaTokenizer"),
        ("camembert_by_kind", None, "CamembertTokenizer"),  # which follows from the model_type that is lost
        ("added_beside_a_file", None, "RobertaTokenizer"),
        ("as_it_is", "PreTrainedTokenizerFast", "PreTrainedTokenizerFast"),
    ],
)
def test_the_tokenizer_comes_along(tmp_path: Path, name: str, source_class: str | None, expected_class: str) -> None:
    files = {file: values for file, values in TOKENIZERS[name]["files"].items() if values is not None}
    kind = files.pop("config.json")["model_type"].replace("longformer", "roberta")  # as the weights are
    ids = {"eos_token_id": 7, "sep_token_id": 2, "mask_token_id": 9, "problem_type": "regression"}
    source = write(tmp_path / "source", "RobertaModel", model_type=kind, decoder_start_token_id=None, **ids)
    for file, values in files.items():
        (source / file).write_text(json.dumps(values), encoding="utf-8")
    (source / "sentencepiece.bpe.model").write_bytes(b"pieces")
    assert files.get("tokenizer_config.json", {}).get("tokenizer_class") == source_class
    out = tmp_path / "out"
    convert(source, out, max_length=128, format="safetensors")
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == expected_class
    assert (out / "sentencepiece.bpe.model").read_bytes() == b"pieces"
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "longformer" and ids.items() <= config.items()
    assert "decoder_start_token_id" not in config
    tokenizer = load_tokenizer(out)
    for text, expected in TOKENIZERS[name]["ids"]:
        assert (tokenizer.encode(text) if isinstance(text, str) else tokenizer.encode(*text)).ids == expected


def test_out_that_cannot_be_written(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    said = run(ROBERTA, tmp_path / "file" / "out", "--max_length=80", capsys=capsys)
    assert re.match("error: out is '.*file/out', which cannot be written ", said), said


def test_module_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "longformer_jax.weights.convert"]
    ran = subprocess.run([*command, ROBERTA, tmp_path / "out", "--max_length=80"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    assert (tmp_path / "out" / "config.json").is_file()
