"""What may differ between a run's configuration and the one under which it goes on."""

import dataclasses
import itertools
import re

from longformer_jax.errors import InputError
from longformer_jax.training.config import MAX_STEPS, ExperimentConfig

# What may differ: nothing here changes what is learnt, but for the dropout masks, which
# follow from how a batch is cut. That the data at another path are the same, their digest tells.
_HARMLESS = re.compile(
    r"(log|eval|checkpoint)_interval|eval_sequences|evaluations_per_epoch|keep_checkpoints|patience|mesh\..*"
    r"|data\.(path|validation_path|data_dir|cache_dir|tokenizer)"  # a run has its tokenizer in its workdir
    r"|model\.(implementation|remat)|phases\[\d+\]\.sequences_per_device|optimizer\.max_skipped_steps"
)
# What tells one kind of run from another; that all else differs, too, is not worth saying.
_KIND = ("objective", "task.kind")
# What may differ as long as the steps that are done would be the same.
_SCHEDULE = re.compile(
    r"phases\[\d+\]\.(steps|epochs)|optimizer\.(warmup_steps|warmup_fraction|max_warmup_steps|cooldown_fraction)"
)


def check_resumes(config: ExperimentConfig, previous: ExperimentConfig, step: int) -> None:
    """Raises InputError, naming the fields, if continuing a run of `previous` would mix two experiments.

    Intervals, the mesh and the like may change. So may phases that have not begun, and the steps of the one that has,
    where the learning rates of the steps that are done do not depend on their number: without decay, and with a warm-up
    of the same length.

    Args:
      config: under which the run is to go on.
      previous: the configuration of the run.
      step: how many steps it has done.
    """
    old, new = flatten(previous.to_dict()), flatten(config.to_dict())

    def follows_from_data(field: str) -> bool:
        """Steps, of as many epochs; that the data have changed, their digest tells."""
        epochs = field.replace(".steps", ".epochs")
        return epochs != field and old.get(epochs) is not None and old[epochs] == new.get(epochs)

    if fields := [field for field in _wrong_fields(config, previous, step) if not follows_from_data(field)]:
        fields = [field for field in _KIND if field in fields][:1] or fields
        changed = ", ".join(f"{field} ({old.get(field)!r}, now {new.get(field)!r})" for field in fields)
        why = _why_fixed(config, previous, step) if all(map(_SCHEDULE.fullmatch, fields)) else ""
        raise InputError(
            f"the workdir holds a run of another configuration: {changed} changed{why}; expected the configuration in "
            "its config.json, or another workdir"
        )


def longer_run(config: ExperimentConfig) -> str | None:
    """The flags under which a finished run of `config` would go on, in words; None where there are none."""
    steps, index = config.phases[-1].steps, len(config.phases) - 1
    # The longest that there can be: a warm-up that stays what it was there does so for any number between.
    last = dataclasses.replace(config.phases[-1], steps=steps + MAX_STEPS - config.total_steps)
    longest = dataclasses.replace(config, phases=(*config.phases[:-1], last))
    field, value = config.phases[-1].extent
    flags = f"--config.phases[{index}].{field} above {value:,}"
    if not _wrong_fields(longest, config, config.total_steps):
        return flags
    flag = _keeping_warmup(longest, config, config.total_steps)
    return flag and f"{flags} with {flag}"


def _wrong_fields(config: ExperimentConfig, previous: ExperimentConfig, step: int) -> list[str]:
    """The fields that keep a run of `previous`, of which `step` steps are done, from going on under `config`."""
    old, new = flatten(previous.to_dict()), flatten(config.to_dict())
    begun = _begun(previous, step)
    # A score on other examples says nothing of which parameters are the best.
    selects = step > 0 and (config.keep_best or config.patience is not None)
    same_past = _begun(config, step) == begun and config.total_steps >= step

    def may_change(field: str) -> bool:
        number = re.match(r"phases\[(\d+)\]", field)
        is_ahead = number is not None and int(number[1]) >= len(begun)
        if field == "eval_sequences" and selects:
            return False
        return bool(_HARMLESS.fullmatch(field) or same_past and (is_ahead or _SCHEDULE.fullmatch(field)))

    differing = [field for field in sorted(old.keys() | new.keys()) if old.get(field) != new.get(field)]
    return [field for field in differing if not may_change(field)]


def _keeping_warmup(config: ExperimentConfig, previous: ExperimentConfig, step: int) -> str | None:
    """A flag that gives `config` the warm-up of the phase that the run has come to, if the run may then go on."""
    warmup = _begun(previous, step)[-1][1]
    try:
        kept = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, warmup_steps=warmup))
    except InputError:  # another phase is too short for it
        return None
    return None if _wrong_fields(kept, previous, step) else f"--config.optimizer.warmup_steps={warmup}"


def _begun(config: ExperimentConfig, step: int) -> list[tuple[int, int, int, tuple[int, int] | None]]:
    """What the learning rates of the first `step` steps follow from, for each phase that has begun.

    That is where it begins, for how many steps it warms up, its number of steps, or 0 where it plays no part, and how
    many steps the whole run and its end, in which rates cool down, have, or None before that.
    """
    starts = itertools.accumulate((phase.steps for phase in config.phases), initial=0)
    is_constant = config.optimizer.decay == "constant"
    total = config.total_steps
    # Step number i of the last n, from 0, has (n - i) / n of its rate: the first all of it.
    has_cooled = config.cooldown_steps and step > total - config.cooldown_steps + 1
    end = (total, config.cooldown_steps) if has_cooled else None
    return [
        (start, config.optimizer.warmup(phase.steps), 0 if is_constant else phase.steps, end)
        for start, phase in zip(starts, config.phases, strict=False)
        if start < step
    ]


def _why_fixed(config: ExperimentConfig, previous: ExperimentConfig, step: int) -> str:
    """Why the numbers of steps of a run of `previous` cannot be those of `config`."""
    begun, now = _begun(previous, step), _begun(config, step)
    index = len(begun) - 1
    if config.optimizer.decay != "constant":
        why = f"with optimizer.decay={config.optimizer.decay!r} their rates follow from the steps of the whole phase"
    elif begun[0][3] != (now[0][3] if now else 0):
        have = "have" if begun[0][3] else "would have"
        why = f"their rates {have} begun to cool down, by optimizer.cooldown_fraction, to the end of the whole run"
    elif len(now) == len(begun) and now[:index] == begun[:index] and now[index][1] != begun[index][1]:
        flag = _keeping_warmup(config, previous, step)
        why = f"phases[{index}] warmed up for {begun[index][1]} steps" + (f" ({flag} keeps that)" if flag else "")
    else:
        why = "only the phase that they have come to may get another end, after them"
    return (
        f", but {step:,} steps are done and {why}; to train for longer, --config.init=WORKDIR/model in another "
        "workdir begins with this run's model"
    )


def flatten(value: object, path: str = "") -> dict[str, object]:
    """{"phases[0].steps": 10, …}, the names beginning with `path`."""
    if isinstance(value, dict):
        items = [(f"{path}.{key}" if path else key, item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for key, item in items for name, leaf in flatten(item, key).items()}
