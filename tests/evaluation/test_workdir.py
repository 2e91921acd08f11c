"""eval.py, and the functions behind it, on what a training run leaves behind."""

import dataclasses
import hashlib
import importlib
import json
import shutil
import signal
import zipfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import flagsaver

from longformer_jax.command_line import one_line_for_errors
from longformer_jax.data import load_corpus
from longformer_jax.data.tfds_builders import Enwik8, LargeText
from longformer_jax.errors import InputError
from longformer_jax.evaluation import evaluate, evaluate_model, sample_text
from longformer_jax.models import CharLM
from longformer_jax.training import DataConfig, ExperimentConfig, load_char_lm, restore_params, train
from tests.training.tiny import CONFIG


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    text = bytes(load_corpus("tiny_shakespeare").split("train")[:4000])
    (folder / "text").write_bytes(text)
    data = DataConfig(path=str(folder / "text"), split=(0.8, 0.1, 0.1))
    config = dataclasses.replace(CONFIG, data=data, checkpoint_interval=10, eval_interval=0)
    train(config, folder / "run")
    return folder / "run"


def expected_bits(workdir, windows, step):
    """The stream protocol's figure for the test split, from one forward pass over all of it."""
    text = np.frombuffer((workdir.parent / "text").read_bytes()[3600:], np.uint8)
    model = CharLM(dataclasses.replace(CONFIG.model, windows=windows))
    logits = model.apply({"params": restore_params(workdir, step)}, jnp.asarray(text[None, :-1]))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -float(jnp.take_along_axis(log_p[0], text[1:, None].astype(int), axis=-1).mean()) / np.log(2)


def test_stream(workdir):
    result = evaluate(workdir, split="test", protocol="stream")
    assert (result.characters, result.step, result.split) == (399, 20, "test")
    assert result.bits_per_character == pytest.approx(expected_bits(workdir, (8, 16), 20), rel=1e-5)
    assert result.characters_per_second == pytest.approx(399 / result.seconds)


def test_a_checkpoint_is_evaluated_with_the_windows_of_its_phase(workdir):
    assert load_char_lm(workdir, step=10)[0] == CONFIG.model_in_phase(0)
    result = evaluate(workdir, split="test", protocol="stream", step=10)
    assert result.bits_per_character == pytest.approx(expected_bits(workdir, (4, 8), 10), rel=1e-5)
    assert abs(expected_bits(workdir, (8, 16), 10) - result.bits_per_character) > 1e-4


def test_several_seeds(workdir, tmp_path):
    for seed in (0, 1):
        shutil.copytree(workdir, tmp_path / f"seed_{seed}")
    *_, last = str(evaluate(tmp_path, split="test", protocol="stream")).splitlines()
    bits = f"{evaluate(workdir, split='test', protocol='stream').bits_per_character:.4f}"
    assert last == f"bits per character of 2 seeds: {bits} ± 0.0000 ({bits}, {bits})"
    with pytest.raises(InputError, match="^workdir is '.*', which holds several runs; expected one of them, such as "):
        sample_text(tmp_path, 5)


def test_paper_agrees_with_stream_where_the_context_is_the_same(workdir):
    """40 positions of context are all the model can use: 8 + 16 * 2."""
    paper = evaluate(workdir, split="test", protocol="paper", sequence_length=399, stride=359)
    text = np.frombuffer((workdir.parent / "text").read_bytes()[3600:], np.uint8)
    assert paper.characters == 359 and len(text) == 400
    stream = evaluate(workdir, split="test", protocol="stream")
    first_forty = evaluate(workdir, split="test", protocol="stream", limit=40)
    rest = (stream.bits_per_character * 399 - first_forty.bits_per_character * 40) / 359
    assert paper.bits_per_character == pytest.approx(rest, rel=1e-5)


@pytest.mark.parametrize("options", [{"protocol": "stream"}, {"sequence_length": 64, "stride": 16}])
def test_a_text_of_ones_own(workdir, tmp_path, options):
    """The run's test split as a file has the figures of the split, by the run and by the model that it has left."""
    (tmp_path / "mine.txt").write_bytes((workdir.parent / "text").read_bytes()[3600:])
    ours = evaluate(workdir, split="test", **options)
    for result in (
        evaluate(workdir, data=tmp_path / "mine.txt", **options),
        evaluate_model(workdir / "model", data=tmp_path / "mine.txt", **options),
    ):
        assert (result.bits_per_character, result.characters) == (ours.bits_per_character, ours.characters)
        assert result.split == "mine.txt"
    assert str(result).startswith(
        f"mine.txt, protocol {options.get('protocol', 'paper')}: {ours.bits_per_character:.4f}"
    )


def test_a_text_that_has_moved(workdir, tmp_path):
    moved = shutil.copytree(workdir, tmp_path / "run")
    values = json.loads((moved / "config.json").read_text())
    values["data"]["path"] = str(tmp_path / "elsewhere")
    (moved / "config.json").write_text(json.dumps(values))
    hint = r"\(if it has moved, say to where by --config.data.path of train.py or --data_path of eval.py\)"
    with pytest.raises(InputError, match=rf"^data: path is '.*/elsewhere', which is missing; expected a file {hint}$"):
        evaluate(moved, protocol="stream")
    text = workdir.parent / "text"
    assert evaluate(moved, data_path=text, protocol="stream", limit=9).characters == 9
    (tmp_path / "other").write_bytes(text.read_bytes()[::-1])
    with pytest.raises(InputError, match=f"^data is other, which has changed since .* the same content {hint}, or ano"):
        evaluate(moved, data_path=tmp_path / "other", protocol="stream")


def test_a_prepared_text_that_is_gone(workdir, tmp_path, monkeypatch):
    """Of a run that has downloaded it, and has no path; there is no network now."""
    text = (workdir.parent / "text").read_bytes()
    monkeypatch.setattr(LargeText, "SPLIT_SIZES", {"train": 3200, "validation": 400, "test": 400})
    monkeypatch.setattr(Enwik8, "MD5", hashlib.md5(text).hexdigest())
    monkeypatch.setattr(Enwik8, "URL", "http://127.0.0.1:9/enwik8.zip")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    run = shutil.copytree(workdir, tmp_path / "run")
    data = DataConfig(source="enwik8", data_dir=str(tmp_path / "prepared"))
    dataclasses.replace(ExperimentConfig.load(run), data=data).save(run)
    message = (
        r"^data: enwik8 could not be downloaded from .*; expected the network, or a path that holds enwik8\.zip "
        r"\(--config\.data\.path of train\.py, --data_path of eval\.py\)$"
    )
    with pytest.raises(InputError, match=message):
        evaluate(run, protocol="stream")
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", text)
    found = evaluate(run, data_path=tmp_path, protocol="stream")
    assert found.bits_per_character == evaluate(workdir, protocol="stream").bits_per_character


def test_limit(workdir):
    assert evaluate(workdir, protocol="paper", sequence_length=64, stride=16, limit=40).characters == 40
    assert evaluate(workdir, protocol="stream", limit=1).characters == 1


def test_sample(workdir):
    text = sample_text(workdir, 30, prompt="ROMEO", seed=1)
    assert len(text) == 30
    assert text == sample_text(workdir, 30, prompt="ROMEO", seed=1)
    assert text != sample_text(workdir, 30, prompt="ROMEO", seed=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"protocol": "both"}, r"protocol is 'both'; expected one of paper, stream"),
        ({"split": "dev"}, r"split is 'dev'; expected one of train, validation, test"),
        (
            {"protocol": "stream", "stride": 5},
            r"^stride is 5, but protocol is 'stream'; expected it with protocol 'paper'",
        ),
        ({"sequence_length": 0}, r"sequence_length is 0; expected an integer >= 1"),
        ({"limit": 0}, r"limit is 0; expected an integer >= 1"),
        ({"limit": "9"}, r"limit is '9'; expected an integer >= 1"),
        ({"limit": True}, r"limit is True; expected an integer >= 1"),
        ({"batch_size": 2.5}, r"batch_size is 2.5; expected an integer >= 1"),
        ({"data": "none"}, r"^data: path is 'none', which is missing; expected a file$"),
        ({"data": "mine", "split": "test"}, r"^split is 'test', but data is 'mine'; expected one of them$"),
        ({"data": "mine", "data_path": "there"}, r"^data_path is 'there', but data is 'mine'; expected one of them$"),
        ({"step": 7, "protocol": "stream"}, r"expected checkpoint 7"),
        ({"step": "20", "protocol": "stream"}, r"expected checkpoint '20'"),
        ({}, r"sequence_length is 32256; expected less than the 400 characters .*, or --protocol=stream"),
    ],
)
def test_evaluate_refuses(workdir, arguments, message):
    with pytest.raises(InputError, match=message):
        evaluate(workdir, **arguments)


def test_sample_refuses(workdir, tmp_path):
    with pytest.raises(InputError, match="prompt is empty"):
        sample_text(workdir, 10, prompt="")
    with pytest.raises(InputError, match=r"^prompt is 'ab\\udcff', no UTF-8 at character 2; expected text in UTF-8$"):
        sample_text(workdir, 10, prompt="ab\udcff")
    with pytest.raises(InputError, match="^length is 1000000000000; expected an integer from 1 to 2"):
        sample_text(workdir, 10**12)
    with pytest.raises(InputError, match="^seed is -1; expected an integer from 0 to 2"):
        sample_text(workdir, 10, seed=-1)
    with pytest.raises(InputError, match="length is 0"):
        sample_text(workdir, 0)
    with pytest.raises(InputError, match="config.json"):
        sample_text(tmp_path, 10)


@pytest.fixture
def run_eval(capsys):
    """eval.py in this process: (exit status, output, errors)."""
    module = importlib.import_module("longformer_jax.scripts.evaluate")  # once, as it defines flags

    def run(*arguments):
        status = 0
        with flagsaver.flagsaver():
            module.flags.FLAGS(["eval.py", *map(str, arguments)])
            try:
                with one_line_for_errors():
                    module.main(["eval.py"])
            except SystemExit as error:
                status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_eval_prints_one_line(workdir, run_eval):
    status, output, _ = run_eval(f"--workdir={workdir}", "--split=test", "--protocol=stream")
    bits = expected_bits(workdir, (8, 16), 20)
    assert status == 0
    assert output.startswith(f"test, protocol stream, step 20: {bits:.4f} bits per character over 399 characters, ")
    assert output.rstrip().endswith("characters/s")


def test_a_prompt_that_is_no_utf8(workdir, run_eval):
    status, output, errors = run_eval(f"--workdir={workdir}", "--sample=5", "--prompt=ab\udcff")
    assert (status, output) == (2, "")
    assert errors == "error: prompt is 'ab\\udcff', no UTF-8 at character 2; expected text in UTF-8\n"


@pytest.mark.slow
def test_eval_writes_what_the_terminal_cannot_show(workdir, run_python):
    arguments = (f"--workdir={workdir}", "--sample=25", "--seed=1")
    shown = [run_python("eval.py", *arguments, PYTHONIOENCODING=name) for name in ("utf-8", "ascii")]
    assert [ran.returncode for ran in shown] == [0, 0]
    assert shown[0].stdout.encode("ascii", "backslashreplace").decode() == shown[1].stdout


def test_eval_says_when_the_memory_is_too_small(workdir, run_eval, monkeypatch):
    def evaluate(workdir):
        return jnp.zeros(2**60, jnp.int8)

    monkeypatch.setattr("longformer_jax.scripts.evaluate.evaluate", evaluate)
    status, output, errors = run_eval(f"--workdir={workdir}")
    assert (status, output) == (1, "")
    assert errors.startswith("error: the memory is too small (") and len(errors.splitlines()) == 1


def test_an_interrupt_takes_one_line(workdir, run_eval, monkeypatch):
    monkeypatch.setattr("longformer_jax.scripts.evaluate.evaluate", lambda workdir: signal.raise_signal(signal.SIGINT))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    try:
        assert run_eval(f"--workdir={workdir}") == (130, "", "error: interrupted\n")
    finally:
        signal.signal(signal.SIGINT, previous)


def test_eval_says_what_is_wrong(workdir, run_eval):
    status, output, errors = run_eval(f"--workdir={workdir}", "--split=dev")
    assert (status, output) == (2, "")
    assert errors == "error: split is 'dev'; expected one of train, validation, test\n"


def test_eval_writes_text(workdir, run_eval):
    status, output, _ = run_eval(f"--workdir={workdir}", "--sample=25")
    assert status == 0 and output == sample_text(workdir, 25) + "\n"
    assert run_eval(f"--model={workdir / 'model'}", "--sample=25") == (0, output, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--workdir is missing; expected --workdir=DIRECTORY"),
        (["--model=m"], "--data is missing; expected --model=MODEL with --data=TEXTS, or with --sample=LENGTH"),
        (["--data=d"], "--workdir is missing; expected --workdir=DIRECTORY, or --model=MODEL with --data or --sample"),
        (["--workdir=w", "--data=d", "--sample=3"], "--data is 'd', but --sample is given; expected one of them"),
        (["--workdir=w", "--model=m", "--data=d"], "--workdir is 'w', but --model is given; expected one of them"),
        (["--sample=9", "--model=m", "--data=d"], "--data is 'd', but --sample is given; expected one of them"),
        (["--sample=9", "--model=m", "--step=3"], "--step is 3, but --model is given, which has no checkpoints"),
        (["--seed=9", "--model=m", "--data=d"], "--seed is 9, but --sample is missing; expected --sample=LENGTH with"),
        (
            ["--sample=9", "--model=tests/golden/encoder/RobertaForMaskedLM"],
            "sample is 9, but 'tests/golden/encoder/RobertaForMaskedLM' is no character LM; expected one",
        ),
        (["--workdir=w", "--prompt=a"], "--prompt is 'a', but --sample is missing; expected --sample=LENGTH with it"),
        (["--workdir=w", "--top_k=1"], "--top_k is 1, but --sample is missing; expected --sample=LENGTH with it"),
        (
            ["--workdir=w", "--sample=1", "--protocol=paper"],
            "--protocol is 'paper', but --sample is given; expected one",
        ),
        (["--workdir=w", "--sample=1", "--split=test"], "--split is 'test', but --sample is given; expected one"),
        (
            ["--workdir=~nobody-of-that-name"],
            "workdir is '~nobody-of-that-name', whose user has no home here; expected",
        ),
        (["--model=m/n/o", "--data=d"], "source is 'm/n/o', which is no directory"),
        (
            ["--model=tests/golden/encoder/RobertaForMaskedLM", "--data=d", "--stride=2"],
            "stride is 2, but 'tests/golden/encoder/RobertaForMaskedLM' is a masked LM and no run; expected no options",
        ),
        (["--workdir=w", "--batch_size=0"], "flag --batch_size=0: 0 is not a"),
        (["--workdir=w", "--steps=1"], "Unknown command line flag 'steps'"),
        (["--workdir=w"], "workdir is 'w', which has no config.json"),
    ],
)
def test_bad_flags_take_one_line(run_script: Callable, arguments: list[str], message: str) -> None:
    ran = run_script("eval.py", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: {message}")
