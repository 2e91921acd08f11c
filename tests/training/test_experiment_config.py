"""Configurations: what is accepted, what each wrong field is called, and when a run may be continued."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from longformer_jax.errors import InputError
from longformer_jax.models import LongformerConfig
from longformer_jax.training import (
    CharLMExperiment,
    DataConfig,
    ExperimentConfig,
    MeshConfig,
    OptimizerConfig,
    TokenDataConfig,
)
from longformer_jax.training.optimizer import learning_rate_schedule
from longformer_jax.training.resumption import check_resumes, longer_run
from tests.training import tiny_task
from tests.training.tiny import CONFIG


def test_round_trip_through_config_dict_and_json(tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        data=DataConfig(source="text_file", path="a file", split=(0.5, 0.25, 0.25)),
        optimizer=OptimizerConfig(decay="cosine"),
        mesh=MeshConfig(fsdp=2),
        seed=7,
    )
    assert ExperimentConfig.from_config_dict(config.to_config_dict()) == config
    config.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert ExperimentConfig.load(tmp_path) == config


def test_overriding_a_config_dict() -> None:
    values = CONFIG.to_config_dict()
    values.phases[1].windows = (3, 5)
    values.phases[1].sequences_per_device = 2
    values.data.path = "a file"
    values.optimizer.weight_decay = 0
    config = ExperimentConfig.from_config_dict(values)
    assert config.phases[1].windows == config.model_in_phase(1).windows == (3, 5)
    assert config.model.windows == config.model_in_phase(0).windows == (4, 8)
    assert config.phases[1].sequences_per_device == 2
    assert config.data.path == "a file"
    assert config.optimizer.weight_decay == 0.0


def test_defaults_fill_what_is_left_out() -> None:
    phase = {"sequence_length": 8, "windows": [2, 2], "learning_rate": 1, "batch_size": 1, "steps": 1}
    model = {"num_layers": 2, "dilations": [1, 1]}
    config = ExperimentConfig.from_dict({"model": model, "phases": [phase]})
    assert config == CharLMExperiment(model=config.model, phases=config.phases)
    assert config.phases[0].learning_rate == 1.0


def change(path: str, value: Any) -> dict[str, Any]:
    """The tiny configuration as JSON, with the field at `path` replaced; "phases.0.steps" is phases[0].steps."""
    values = json.loads(json.dumps(CONFIG.to_dict()))
    *parents, last = path.split(".")
    target = values
    for key in parents:
        target = target[int(key) if key.isdecimal() else key]
    target[int(last) if last.isdecimal() else last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sed", 1, r"sed is 1; expected no such key, but one of model, phases, .*seed"),
        ("model.widht", 1, r"model\.widht is 1; expected no such key, but one of vocab_size"),
        ("phases.1.lr", 1, r"phases\[1\]\.lr is 1; expected no such key"),
        ("seed", "x", r"seed is 'x'; expected an integer"),
        ("seed", True, r"seed is True; expected an integer"),
        ("seed", 1.0, r"seed is 1\.0; expected an integer"),
        ("seed", -1, r"seed is -1; expected at least 0"),
        ("log_interval", 0, r"log_interval is 0; expected at least 1"),
        ("eval_interval", -1, r"eval_interval is -1; expected at least 0"),
        ("eval_sequences", 0, r"eval_sequences is 0; expected at least 1"),
        ("checkpoint_interval", 0, r"checkpoint_interval is 0; expected at least 1"),
        ("keep_checkpoints", 0, r"keep_checkpoints is 0; expected at least 1"),
        ("model", None, r"model is None; expected a mapping"),
        ("model.windows", [4, 8], r"model\.windows is \[4, 8\]; expected no such key, as phases have the windows"),
        ("model.embed_dim", "wide", r"model\.embed_dim is 'wide'; expected an integer"),
        ("model.remat", 1, r"model\.remat is 1; expected true or false"),
        ("model.positions", 1, r"model\.positions is 1; expected text"),
        ("phases", [], r"phases is \[\]; expected a list of at least one phase"),
        ("phases", {"steps": 1}, r"phases is {'steps': 1}; expected a list of at least one phase"),
        ("phases.1", 3, r"phases\[1\] is 3; expected a mapping"),
        ("phases.1.windows", [4, 8, 16], r"phases\[1\]\.windows "),
        ("phases.0.windows", [4], r"phases\[0\]\.windows "),
        ("phases.1.windows", 4, r"phases\[1\]\.windows is 4; expected a list"),
        ("phases.1.windows", [4, "x"], r"phases\[1\]\.windows\[1\] is 'x'; expected an integer"),
        ("phases.0.steps", 0, r"phases\[0\]\.steps is 0; expected at least 1"),
        ("phases.0.batch_size", 0, r"phases\[0\]\.batch_size is 0; expected at least 1"),
        ("phases.0.sequence_length", 0, r"phases\[0\]\.sequence_length is 0; expected at least 1"),
        ("phases.0.sequences_per_device", 0, r"phases\[0\]\.sequences_per_device is 0; expected at least 1"),
        ("phases.0.learning_rate", 0, r"phases\[0\]\.learning_rate is 0\.0; expected a positive number"),
        ("phases.0.learning_rate", float("nan"), r"phases\[0\]\.learning_rate is nan; expected a positive number"),
        ("optimizer.decay", "step", r"optimizer\.decay is 'step'; expected one of constant, linear, cosine"),
        ("optimizer.b1", 1, r"optimizer\.b1 is 1\.0; expected a number of at least 0 and below 1"),
        ("optimizer.b2", -0.1, r"optimizer\.b2 is -0\.1; expected a number of at least 0 and below 1"),
        ("optimizer.warmup_fraction", 1.5, r"optimizer\.warmup_fraction is 1\.5; expected a number of at least 0 and"),
        ("optimizer.eps", 0, r"optimizer\.eps is 0\.0; expected a positive number"),
        ("optimizer.clip_norm", 0, r"optimizer\.clip_norm is 0\.0; expected a positive number"),
        ("optimizer.weight_decay", -1, r"optimizer\.weight_decay is -1\.0; expected at least 0"),
        ("optimizer.max_warmup_steps", -1, r"optimizer\.max_warmup_steps is -1; expected at least 0"),
        ("optimizer.final_fraction", 2, r"optimizer\.final_fraction is 2\.0; expected a number from 0 to 1"),
        ("mesh.data", 0, r"mesh\.data is 0; expected at least 1, or -1 for the devices that remain"),
        ("mesh.fsdp", -2, r"mesh\.fsdp is -2; expected at least 1, or -1 for the devices that remain"),
        ("mesh.fsdp", -1, r"mesh\.fsdp is -1; expected a number, as data is -1 too"),
        ("optimizer.name", "sgd", r"optimizer\.name is 'sgd'; expected one of adamw, muon"),
        ("optimizer.muon_factor", 0, r"optimizer\.muon_factor is 0\.0; expected a positive number"),
        ("optimizer.cooldown_fraction", 2, r"optimizer\.cooldown_fraction is 2\.0; expected a number from 0 to 1"),
        ("data.path", 3, r"data\.path is 3; expected text"),
        ("objective", ["char_lm"], r"objective is \['char_lm'\]; expected one of char_lm, masked_lm"),
        ("model.vocab_size", 10**12, r"model\.vocab_size is 1000000000000; expected at most 16777216"),
        ("model.num_layers", 10**12, r"model\.num_layers is 1000000000000; expected at most 16777216"),
        ("phases.0.windows", [4, 10**12], r"phases\[0\]\.windows is 1000000000000; expected at most 16777216"),
        (
            "phases.0.batch_size",
            10**12,
            r"phases\[0\]\.batch_size is 1000000000000; expected fewer than 2\*\*31 tokens",
        ),
        (
            "phases.0.learning_rate",
            10**400,
            r"phases\[0\]\.learning_rate is 10+; expected a number that a float can be",
        ),
        ("optimizer.eps", float("inf"), r"optimizer\.eps is inf; expected a positive number"),
        ("optimizer.weight_decay", float("nan"), r"optimizer\.weight_decay is nan; expected at least 0"),
        ("data.split", 1, r"data\.split is 1; expected a list"),
    ],
)
def test_bad_input(path: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        ExperimentConfig.from_dict(change(path, value))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(eps="small"), "eps is 'small'; expected a number"),  # pyrefly: ignore
        (lambda: OptimizerConfig(train_only=3), "train_only is 3; expected text"),  # pyrefly: ignore
        (lambda: MeshConfig(data=None), "data is None; expected an integer"),  # pyrefly: ignore
        (lambda: DataConfig(split="all"), "split is 'all'; expected a list"),  # pyrefly: ignore
        (lambda: TokenDataConfig(path=b"text"), "path is b'text'; expected text"),  # pyrefly: ignore
        (lambda: dataclasses.replace(CONFIG, seed="1"), "seed is '1'; expected an integer"),
        (lambda: dataclasses.replace(CONFIG, phases=None), "phases is None; expected a list"),
        (lambda: dataclasses.replace(CONFIG, phases=(3,)), r"phases\[0\] is 3; expected a mapping"),
        (lambda: dataclasses.replace(CONFIG, model=LongformerConfig()), r"model is .*; expected a mapping"),
        (lambda: dataclasses.replace(CONFIG.phases[0], steps=True), "steps is True; expected an integer"),
        (lambda: ExperimentConfig.from_dict([]), r"config is \[\]; expected a mapping"),  # pyrefly: ignore
        (lambda: ExperimentConfig.from_config_dict(3), "config is 3; expected a ConfigDict"),  # pyrefly: ignore
    ],
)
def test_bad_types_in_python(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        make()


def test_numbers_of_numpy_and_lists_become_those_of_python() -> None:
    phase = dataclasses.replace(CONFIG.phases[0], windows=[4, np.int64(8)], learning_rate=np.float32(0.5))
    assert repr((phase.windows, phase.learning_rate)) == "((4, 8), 0.5)"
    assert hash(dataclasses.replace(CONFIG, phases=[phase, *CONFIG.phases[1:]]))


def test_missing_field() -> None:
    values = CONFIG.to_dict()
    del values["phases"][1]["steps"]
    with pytest.raises(InputError, match=r"^phases\[1\]\.steps is missing; expected a value$"):
        ExperimentConfig.from_dict(values)


def test_config_dict_of_other_things() -> None:
    with pytest.raises(InputError, match="^config holds a value that is no number, text, list or mapping"):
        ExperimentConfig.from_config_dict(ConfigDict({"model": {"dtype": object()}}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "which has no config.json"),
        ('{"seed":', r"config\.json is damaged \(.*\); expected a JSON object"),
        ("[1]", r"config\.json is damaged; expected a JSON object"),
        ("[" * 200_000, r"config\.json is damaged \(maximum recursion depth"),
        ('{"phases": 3}', r"config\.json: phases is 3; expected a list"),
    ],
)
def test_unreadable_config_json(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        ExperimentConfig.load(tmp_path)


def test_phases_and_tokens_by_step() -> None:
    assert [CONFIG.phase_at(step) for step in (0, 11, 12, 19, 20)] == [0, 0, 1, 1, 1]
    assert CONFIG.total_steps == 20
    first, second = 8 * 32, 8 * 48
    expected = [0, first, 12 * first, 12 * first + second, 12 * first + 8 * second]
    assert [CONFIG.tokens_at(step) for step in (0, 1, 12, 13, 20)] == expected


@pytest.mark.parametrize("split", ["train", "validation"])
def test_text_shorter_than_a_sequence(tmp_path: Path, split: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(100))
    fractions = (0.4, 0.6, 0.0) if split == "train" else (0.6, 0.4, 0.0)
    config = dataclasses.replace(CONFIG, data=DataConfig(path=str(text), split=fractions))
    message = rf"^phases\[1\]\.sequence_length is 48; expected less than the 40 characters of the {split} split"
    with pytest.raises(InputError, match=message):
        config.load_data()


def test_validation_text_is_not_needed_without_validation(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(bytes(100))
    data = DataConfig(path=str(text), split=(1.0, 0.0, 0.0))
    assert len(dataclasses.replace(CONFIG, data=data, eval_interval=0).load_data().split("train")) == 100


def test_token_outside_the_vocabulary() -> None:
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vocab_size=64))
    with pytest.raises(InputError, match="vocab_size is 64"):
        config.load_data()


def changed(edit: Callable[[dict[str, Any]], None]) -> ExperimentConfig:
    values = copy.deepcopy(CONFIG.to_dict())
    edit(values)
    return ExperimentConfig.from_dict(values)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(
            log_interval=1, eval_interval=0, eval_sequences=1, checkpoint_interval=1, keep_checkpoints=9
        ),
        lambda c: c["mesh"].update(data=1, fsdp=2),
        lambda c: c["data"].update(data_dir="elsewhere"),
        lambda c: c["data"].update(path="where the same file is now"),  # data.json tells if it is not the same
        lambda c: c["phases"][0].update(sequences_per_device=None),
        lambda c: c["phases"][1].update(steps=9),
        lambda c: c["model"].update(remat=True, implementation="reference"),
    ],
)
def test_harmless_changes_resume(edit: Callable[[dict[str, Any]], None]) -> None:
    check_resumes(changed(edit), CONFIG, 20)


def test_examples_that_select_stay_the_same() -> None:
    for selects in ({"keep_best": True}, {"patience": 3}):
        previous = dataclasses.replace(CONFIG, **selects)
        fewer = dataclasses.replace(previous, eval_sequences=1)
        check_resumes(fewer, previous, 0)
        with pytest.raises(
            InputError, match=r"of another configuration: eval_sequences \(6, now 1\) changed; expected"
        ):
            check_resumes(fewer, previous, 1)


def test_the_tokenizer_of_a_run_is_in_its_workdir() -> None:
    data = dataclasses.replace(tiny_task.CONFIG.data, tokenizer="where it was", path="data")
    previous = dataclasses.replace(tiny_task.CONFIG, data=data)
    moved = dataclasses.replace(previous, data=dataclasses.replace(data, tokenizer="elsewhere"))
    check_resumes(moved, previous, 5)


def test_data_that_nothing_tells_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = CONFIG.open_data(tmp_path)
    assert caplog.messages == [
        f"{tmp_path / 'data.json'} is missing; whether the data are those that the run began with is not checked"
    ]
    CONFIG.save_data(tmp_path, data)
    CONFIG.open_data(tmp_path)
    assert len(caplog.messages) == 1
    (tmp_path / "data.json").unlink()
    (tmp_path / "data.json").mkdir()
    with pytest.raises(InputError, match=r"^'.*/data\.json' is there, but is no file; expected a file$"):
        CONFIG.open_data(tmp_path)


@pytest.mark.parametrize(
    ("optimizer", "why"),
    [
        ({"decay": "linear"}, "with optimizer.decay='linear' their rates follow from the steps of the whole phase; to"),
        ({"decay": "cosine"}, "with optimizer.decay='cosine' their rates follow from the steps of the whole phase; to"),
        # Four steps of warm-up would be others than the first phase had.
        ({"warmup_fraction": 0.5}, r"phases\[1\] warmed up for 4 steps; to train for longer"),
    ],
    ids=["linear", "cosine", "warmup"],
)
def test_more_steps_must_not_change_the_rates_of_earlier_ones(optimizer: dict[str, Any], why: str) -> None:
    """As a longer decay or warm-up would: the state must stay a function of configuration and step."""
    values = CONFIG.to_dict()
    values["optimizer"].update(optimizer)
    previous = ExperimentConfig.from_dict(values)
    values["phases"][1]["steps"] += 20
    with pytest.raises(InputError, match=rf"phases\[1\]\.steps \(8, now 28\) changed, but 14 steps are done and {why}"):
        check_resumes(ExperimentConfig.from_dict(values), previous, 14)
    check_resumes(ExperimentConfig.from_dict(values), previous, 12)  # the phase has not begun


@pytest.mark.parametrize(
    ("step", "steps", "why"),
    [
        (6, (30, 8), None),
        (12, (30, 8), None),
        (6, (6, 8), None),
        (6, (5, 8), "only the phase that they have come to may get another end, after them"),
        (13, (30, 8), "only the phase that they have come to may get another end, after them"),
        (13, (12, 1), None),
        (0, (1, 1), None),
    ],
)
def test_steps_that_are_ahead_may_change(step: int, steps: tuple[int, int], why: str | None) -> None:
    """Without warm-up and decay: of the phase that a run has come to, as long as its end is, and of later ones."""
    values = CONFIG.to_dict()
    values["optimizer"]["warmup_steps"] = 0
    previous = ExperimentConfig.from_dict(values)
    for phase, count in zip(values["phases"], steps, strict=True):
        phase["steps"] = count
    config = ExperimentConfig.from_dict(values)
    if why is None:
        check_resumes(config, previous, step)
    else:
        with pytest.raises(
            InputError, match=f"changed, but {step} steps are done and {why}; to train for longer, --conf"
        ):
            check_resumes(config, previous, step)


def test_a_warm_up_may_be_said_in_another_way() -> None:
    values = CONFIG.to_dict()
    previous = ExperimentConfig.from_dict(values)
    values["phases"][0]["steps"] = 30
    with pytest.raises(
        InputError, match=r"phases\[0\] warmed up for 1 steps \(--config.optimizer.warmup_steps=1 keeps"
    ):
        check_resumes(ExperimentConfig.from_dict(values), previous, 6)
    values["optimizer"]["warmup_steps"] = 1
    check_resumes(ExperimentConfig.from_dict(values), previous, 6)


def with_optimizer(steps: tuple[int, ...], **fields: Any) -> ExperimentConfig:
    values = CONFIG.to_dict()
    values["optimizer"].update(fields)
    values["phases"] = [values["phases"][0] | {"steps": count} for count in steps]
    return ExperimentConfig.from_dict(values)


@pytest.mark.parametrize(
    ("before", "now", "step", "fits"),
    [
        ((40,), (60,), 35, True),
        ((40, 3), (60, 3), 35, False),  # a warm-up of 4 steps is longer than the other phase
        ((40, 40), (40, 60), 75, True),
        ((20, 40), (20, 60), 55, False),  # the first phase had another
    ],
)
def test_only_a_warm_up_that_fits_is_suggested(
    before: tuple[int, ...], now: tuple[int, ...], step: int, fits: bool
) -> None:
    with pytest.raises(InputError, match=r"warmed up for 4 steps") as raised:
        check_resumes(with_optimizer(now), with_optimizer(before), step)
    assert ("(--config.optimizer.warmup_steps=4 keeps that)" in str(raised.value)) == fits
    if fits:
        check_resumes(with_optimizer(now, warmup_steps=4), with_optimizer(before), step)


@pytest.mark.parametrize(
    ("steps", "optimizer", "flags"),
    [
        ((9,), {"warmup_fraction": 0.0}, "--config.phases[0].steps above 9"),
        ((12, 9), {"warmup_steps": 1}, "--config.phases[1].steps above 9"),
        ((40, 40), {"max_warmup_steps": 4}, "--config.phases[1].steps above 40"),
        ((40, 40), {}, "--config.phases[1].steps above 40 with --config.optimizer.warmup_steps=4"),
        ((20, 40), {}, None),
        ((40,), {"decay": "linear"}, None),
        ((40,), {"cooldown_fraction": 0.1}, None),
    ],
)
def test_a_finished_run_goes_on_under_the_flags_that_are_named(
    steps: tuple[int, ...], optimizer: dict[str, Any], flags: str | None
) -> None:
    previous = with_optimizer(steps, **optimizer)
    assert longer_run(previous) == flags
    kept = {"warmup_steps": 4} if flags and "warmup_steps" in flags else {}
    for longer in (steps[-1] + 1, steps[-1] * 100):
        config = with_optimizer((*steps[:-1], longer), **optimizer | kept)
        if flags:
            check_resumes(config, previous, sum(steps))
    if flags is None:
        with pytest.raises(InputError):
            check_resumes(config, previous, sum(steps))


def test_steps_may_change_until_the_rates_cool_down() -> None:
    before, now = (with_optimizer((steps,), cooldown_fraction=0.25, warmup_steps=0) for steps in (40, 60))
    earlier = with_optimizer((40,), cooldown_fraction=0.5, warmup_steps=0)
    for step, changed in ((31, now), (21, earlier)):
        rates = [learning_rate_schedule(config)(step - 1) for config in (before, changed)]
        assert rates[0] == rates[1]
        check_resumes(changed, before, step)
    with pytest.raises(InputError, match=r"32 steps are done and their rates have begun to cool down, by optimizer\.c"):
        check_resumes(now, before, 32)
    with pytest.raises(InputError, match=r"22 steps are done and their rates would have begun to cool down, by optim"):
        check_resumes(earlier, before, 22)
    assert learning_rate_schedule(before)(31) != learning_rate_schedule(now)(31)
    assert learning_rate_schedule(before)(21) != learning_rate_schedule(earlier)(21)


def test_a_phase_that_has_not_begun_may_be_another() -> None:
    phase = dataclasses.replace(CONFIG.phases[1], sequence_length=16, learning_rate=1e-4, steps=3)
    check_resumes(dataclasses.replace(CONFIG, phases=(CONFIG.phases[0], phase)), CONFIG, 12)
    check_resumes(dataclasses.replace(CONFIG, phases=(*CONFIG.phases, phase)), CONFIG, 20)
    with pytest.raises(
        InputError, match=r": phases\[1\]\.learning_rate \(0\.001, now 0\.0001\), .* changed; expected the"
    ):
        check_resumes(dataclasses.replace(CONFIG, phases=(CONFIG.phases[0], phase)), CONFIG, 13)


@pytest.mark.parametrize(
    ("edit", "names"),
    [
        (lambda c: c.update(seed=1), [r"seed \(0, now 1\)"]),
        (lambda c: c["model"].update(embed_dim=32), [r"model\.embed_dim \(16, now 32\)"]),
        (lambda c: c["data"].update(source="enwik8"), [r"data\.source \(None, now 'enwik8'\)"]),
        (lambda c: c["optimizer"].update(b2=0.5, decay="linear"), [r"optimizer\.b2 \(0\.999, now 0\.5\)", "decay"]),
        (lambda c: c["phases"][0].update(steps=13), [r"phases\[0\]\.steps \(12, now 13\)"]),
        (lambda c: c["phases"][1].update(steps=7), [r"phases\[1\]\.steps \(8, now 7\)"]),
        (lambda c: c["phases"][1]["windows"].__setitem__(0, 9), [r"phases\[1\]\.windows\[0\] \(8, now 9\)"]),
        (lambda c: c["phases"].pop(), [r"phases\[1\]\.steps \(8, now None\)"]),
    ],
)
def test_other_changes_do_not_resume(edit: Callable[[dict[str, Any]], None], names: list[str]) -> None:
    with pytest.raises(InputError, match="^the workdir holds a run of another configuration") as raised:
        check_resumes(changed(edit), CONFIG, 20)
    for name in names:
        raised.match(name)
