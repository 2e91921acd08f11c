"""The training loop: phases, validation, checkpoints, and how a run ends."""

import contextlib
import dataclasses
import datetime
import itertools
import math
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from longformer_jax.checkpoints import DIRECTORY, Checkpoints, find_checkpoint, had_checkpoint, has_checkpoint
from longformer_jax.errors import InputError
from longformer_jax.files import check_kinds, check_shared, locked, user_path
from longformer_jax.models.checks import check_config
from longformer_jax.processes import alone, check_same, from_first, together, versions
from longformer_jax.settings import pinned
from longformer_jax.training.config import CONFIG_FILE, DATA_FILE, ExperimentConfig, Validator
from longformer_jax.training.finite import places
from longformer_jax.training.flops import peak_flops
from longformer_jax.training.metrics import (
    BOARD_DIRECTORY,
    CURVE_FILE,
    METRICS_FILE,
    MetricsLog,
    plot_curve,
    read_metrics,
    short_count,
)
from longformer_jax.training.monitor import DivergenceError, Report, StepMonitor
from longformer_jax.training.preemption import StopRequest
from longformer_jax.training.resumption import check_resumes, flatten, longer_run
from longformer_jax.training.selection import BEST_DIRECTORY, Selection, has_best, remove_bests, save_best
from longformer_jax.training.serialization import check
from longformer_jax.training.sharding import (
    accumulation_steps,
    batch_share,
    check_memory,
    describe_mesh,
    make_mesh,
    put_batch,
)
from longformer_jax.training.step import State, abstract_state, compile_train_step, init_state
from longformer_jax.training.workdir import MODEL_DIRECTORY, leave_model

# `profile` traces this many steps, after as many others in which caches get warm.
_PROFILED_STEPS = 3

_PROFILE = "profile"
_PLACE = re.compile(r"config\.data\.(path|validation_path|data_dir|cache_dir|tokenizer)")
# What a workdir may hold.
_FILES = (CONFIG_FILE, DATA_FILE, METRICS_FILE, CURVE_FILE, "tokenizer.json", "global_projections.safetensors")
_DIRECTORIES = (DIRECTORY, BEST_DIRECTORY, BOARD_DIRECTORY, MODEL_DIRECTORY, _PROFILE)


@pinned()
def train(config: ExperimentConfig, workdir: str | Path, *, profile: bool = False) -> State:
    """Trains through all phases, or on from where `workdir` stands, and returns the last state.

    The workdir gets config.json, data.json, checkpoints/, best/ where the best is kept, metrics.jsonl, curve.png,
    tensorboard/ where tensorboardX is installed, what else the kind of experiment needs, and at the end model/, for
    `load_pretrained`. On SIGTERM or Ctrl-C the state is saved and returned early; a second Ctrl-C is a
    KeyboardInterrupt. With several processes, call this in each of them after `jax.distributed.initialize`, with a
    workdir that they share.

    Args:
      config: what to train.
      workdir: a directory, made if need be. If it holds checkpoints, the run goes on from the latest.
      profile: writes a trace of a few steps to WORKDIR/profile, for TensorBoard or Perfetto.

    Raises:
      InputError: the data, the devices, the workdir or its checkpoint do not fit `config`, another run is in the
        workdir, or the processes differ in what they are to do; before anything compiles.
      OSError: the system refused a file, such as for a full disk. What had been saved stays.
      DivergenceError: the loss or the gradient norm is not finite, in more steps than `optimizer.max_skipped_steps`
        allows. The latest checkpoint is from before that.
    """
    with together():
        check_config(config, ExperimentConfig)
        workdir = user_path("workdir", workdir)
        # Most gradients of a mean over thousands of targets are below float16's smallest numbers.
        dtype: Any = config.model.dtype  # type: ignore
        check(dtype != "float16", "model.dtype", dtype, "float32 or bfloat16, as training does not scale the loss")
    if not alone():
        check_same(versions() | {"workdir": str(workdir.absolute())} | _what_decides(config))
    jax.devices()  # these, too, wait for all processes
    with together():  # whether batches can be split, before the data are read
        mesh = make_mesh(config.mesh)
        batch_share(mesh)
        for index in range(len(config.phases)):
            for length in config.phase_lengths(index):
                accumulation_steps(config, index, mesh, length)
    with contextlib.ExitStack() as held:
        with together():
            holder = held.enter_context(_claimed(workdir)) if jax.process_index() == 0 else None
        holder = from_first(holder)
        with together():
            check_shared("workdir", workdir, holder)
        with together():
            config = config.completed(workdir if has_checkpoint(workdir) else None)
            abstract = abstract_state(config, mesh)
            check_memory(abstract)
            data = _open(config, workdir)
        if not alone():
            check_same({"digest of the data": data.fingerprint})
        return _run(config, workdir, data, mesh, abstract, profile)


def _what_decides(config: ExperimentConfig) -> dict[str, Any]:
    """The fields of a configuration but for where the data lies, which may differ if the data are the same."""
    return {name: value for name, value in flatten(config.to_dict(), "config").items() if not _PLACE.fullmatch(name)}


@contextlib.contextmanager
def _claimed(workdir: Path) -> Iterator[str]:
    """The lock on a workdir; raises InputError where it cannot be had."""
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"workdir is {str(workdir)!r}, which is a file; expected a directory")
    with contextlib.ExitStack() as held:
        try:
            holder = held.enter_context(locked("workdir", workdir))
        except OSError as error:
            raise InputError(f"workdir is {str(workdir)!r}, which cannot be written to ({error.strerror})") from None
        yield holder


def _open(config: ExperimentConfig, workdir: Path) -> Any:
    """The data; raises InputError where they or the workdir do not fit."""
    files, directories = ([workdir / name for name in names] for names in (_FILES, _DIRECTORIES))
    check_kinds(*files, directories=directories)
    if has_checkpoint(workdir):
        check_resumes(config, ExperimentConfig.load(workdir), find_checkpoint(workdir))
        return config.open_data(workdir)
    _check_new(config, workdir)
    return config.load_data()


def _run(
    config: ExperimentConfig,
    workdir: Path,
    data: Any,
    mesh: jax.sharding.Mesh,
    abstract: State,
    profile: bool,
) -> State:
    """`train`, once all is seen to fit."""
    with StopRequest() as stop, Checkpoints(workdir, config.keep_checkpoints) as checkpoints:
        # Storage may show another machine what has been written only later, so one process decides for all.
        start = from_first(checkpoints.latest_step or 0)
        state = checkpoints.restore(abstract, start) if start else init_state(config, mesh)
        numbers = (config.unit, config.score)
        validations = []
        with together():
            if jax.process_index() == 0:
                config.save(workdir)
                config.save_data(workdir, data)
                records = read_metrics(workdir / METRICS_FILE, numbers) if start else []
                validations = [r for r in records if r["split"] == "validation" and r["step"] <= start]
        selection = Selection.of(config, from_first(validations))
        with together():
            if jax.process_index() == 0:  # the rest is of validations that are made again, or of another attempt
                remove_bests(workdir, selection.needed(start))
        with MetricsLog(workdir, step=start, total_steps=config.total_steps, numbers=numbers) as log:
            parameters = sum(math.prod(tensor.shape) for tensor in jax.tree.leaves(abstract["params"]))
            log.say(
                f"{short_count(parameters)} parameters on {data.name}, {mesh.size} x {jax.devices()[0].device_kind} "
                f"({describe_mesh(mesh)}), " + _where_it_begins(config, workdir, start, selection)
            )
            run = _Loop(config, workdir, data, mesh, checkpoints, log, stop, profile, start, selection)
            try:
                state = run.train(state)
            except DivergenceError as error:
                checkpoints.wait()
                last = checkpoints.latest_step
                kept = f"checkpoint {last} in {workdir / DIRECTORY} is the last good one" if last else "none was saved"
                raise DivergenceError(
                    f"{error}; {kept}; in another workdir, a lower learning_rate may help, or "
                    "--config.optimizer.max_skipped_steps in this one"
                ) from None
    with together():
        if jax.process_index() == 0:
            plot_curve(workdir, config.unit, config.score, config.score_name, config.selection[0])
    return state


def _check_new(config: ExperimentConfig, workdir: Path) -> None:
    """Raises InputError where there would be overwritten what another run, or none, has left without a checkpoint."""
    if (workdir / CONFIG_FILE).exists():
        try:
            previous = ExperimentConfig.load(workdir)
        except InputError as error:
            raise InputError(
                f"workdir is {str(workdir)!r}, whose {CONFIG_FILE} is not of a run ({error}); expected a new directory"
            ) from None
        check_resumes(config, previous, 0)
        _check_not_lost(previous, workdir)
        return
    for name in (METRICS_FILE, CURVE_FILE, MODEL_DIRECTORY):
        if (workdir / name).exists():
            raise InputError(
                f"workdir is {str(workdir)!r}, which holds {name}, but no {CONFIG_FILE}; expected a new directory"
            )


def _check_not_lost(config: ExperimentConfig, workdir: Path) -> None:
    """Raises InputError where a run had a checkpoint, by its log, but has none any more."""
    last = max((record["step"] for record in read_metrics(workdir / METRICS_FILE)), default=0)
    # The second save waits for the first: a run that was killed before that may have had none, and may begin again.
    saved = last > 2 * config.checkpoint_interval or last >= config.total_steps or had_checkpoint(workdir)
    if last and (saved or not (workdir / DIRECTORY).exists()):
        raise InputError(
            f"workdir is {str(workdir)!r}, whose {METRICS_FILE} goes to step {last:,}, but without a checkpoint to go "
            f"on from; expected its {DIRECTORY}, or another directory (to begin anew in it, remove {METRICS_FILE})"
        )


def _where_it_begins(config: ExperimentConfig, workdir: Path, start: int, selection: Selection) -> str:
    """What a run says of the step that it starts from, and a finished one of how to go on."""
    if selection.is_over(config.patience) and start < config.total_steps:
        return f"already ended after step {start:,}; --config.patience above {selection.since_best} trains for longer"
    if start < config.total_steps:
        return f"continuing after step {start:,}" if start else "from the beginning"
    way = f"--config.init={workdir / MODEL_DIRECTORY} in another workdir begins with its model"
    if flags := longer_run(config):
        way = f"{flags} trains for longer, and {way}"
    return f"already finished with step {start:,}; {way}"


def _shapes(batch: Any) -> tuple[tuple[int, ...], ...]:
    """Those of the rows of a batch, or of what it is like."""
    return tuple(leaf.shape[1:] for leaf in jax.tree.leaves(batch))


@dataclasses.dataclass
class _Loop:
    """What the phases of a run share."""

    config: ExperimentConfig
    workdir: Path
    data: Any
    mesh: jax.sharding.Mesh
    checkpoints: Checkpoints
    log: MetricsLog
    stop: StopRequest
    profile: bool
    start: int
    selection: Selection
    stopped: bool = False
    tracing: bool = False

    def train(self, state: State) -> State:
        """The phases that are not finished yet, until one of them is told to stop."""
        step, config = self.start, self.config
        monitor = StepMonitor(
            config.log_interval,
            places(state["params"]),
            most_skipped=config.optimizer.max_skipped_steps,
            say=self.log.say,
        )
        if step < config.total_steps and not self.is_over:
            self._remove_model()
            self._forget_lost_best()
        ends = itertools.accumulate(phase.steps for phase in config.phases)
        for index, end in enumerate(ends):
            # A run may have been stopped or killed before the validation that ends a phase was over.
            validates = step == end and config.eval_interval and self._is_due(end)
            if (step < end or validates) and not self.stopped and not self.is_over:
                state, step = self._train_phase(index, state, step, end, monitor)
        monitor.end()
        if self.stopped:
            what = f"and saved after step {step:,}" if step else "before the first step"
            self.log.say(f"stopped {what}; the same command continues from there")
        else:
            self._conclude(state)
        return state

    @property
    def is_over(self) -> bool:
        """Whether the run has lost its patience."""
        return self.selection.is_over(self.config.patience)

    def _remove_model(self) -> None:
        """Removes the model of an earlier, shorter end: what is there is that of a run that has ended."""
        with together():
            if jax.process_index() == 0 and (model := self.workdir / MODEL_DIRECTORY).exists():
                shutil.rmtree(model)

    def _forget_lost_best(self) -> None:
        """Where the best parameters are gone, as an earlier version may have left it, later ones become the best."""
        best = self.selection
        if (
            self.config.keep_best
            and best.best_step is not None
            and not from_first(has_best(self.workdir, best.best_step))
        ):
            self.log.say(
                f"the parameters of step {best.best_step:,}, the best validation, are gone; the next is the best"
            )
            self.selection = Selection(best.name, best.largest, best.steps)

    def _conclude(self, state: State) -> None:
        """What a run that has come to its end leaves and says; again when started again, as it may have been killed."""
        config, best = self.config, self.selection
        if self.is_over:
            self.log.say(f"ended, as {best.since_best} validations were no better than that of step {best.best_step:,}")
        if config.keep_best and best.best_step is not None:
            self.log.say(f"best validation {best.name} {best.best_value:.4f}, after step {best.best_step:,}")
        directory = leave_model(config, self.workdir, state, best.best_step if config.keep_best else None)
        self.checkpoints.wait()
        if jax.process_index() == 0:
            remove_bests(self.workdir, best.needed(self.checkpoints.latest_step or 0))
        self.log.say(f"wrote the model to {directory}; {config.how_to_load(self.workdir, directory)} reads it")
        if config.validates_first and jax.process_index() == 0:
            records = read_metrics(self.workdir / METRICS_FILE, (config.unit, config.score))
            found = {record["step"]: record[config.score] for record in records if record["split"] == "validation"}
            if found.keys() >= {0, config.total_steps}:
                first, last = found[0], found[config.total_steps]
                self.log.say(f"validation {config.score} {first:.4f} before training, {last:.4f} after")

    def _train_phase(self, index: int, state: State, step: int, end: int, monitor: StepMonitor) -> tuple[State, int]:
        """The steps after `step` up to `end`, fewer if told to stop; returns the state and its number of steps."""
        config, phase = self.config, self.config.phases[index]
        self.log.say(f"compiling phase {index + 1} of {len(config.phases)}")
        began = time.perf_counter()
        steps = {}  # by the shapes of a batch
        specs = config.batch_specs(index, self.data)
        for length, spec in specs.items():
            accumulate = accumulation_steps(config, index, self.mesh, length)
            steps[_shapes(spec)] = (accumulate, compile_train_step(config, index, accumulate, self.mesh, spec))
        lengths = ", ".join(f"{length:,}" for length in specs)
        at_once = ", ".join(str(phase.batch_size // accumulate) for accumulate, _ in steps.values())
        self.log.say(
            f"phase {index + 1} of {len(config.phases)}, up to step {end:,}: {phase.batch_size} x {lengths} "
            f"{config.sequence_unit or config.unit} a step, {at_once} sequences at once; compiled in "
            f"{time.perf_counter() - began:.1f} s"
        )
        share, shares = batch_share(self.mesh)
        position = {"start_step": step - (end - phase.steps), "process_index": share, "process_count": shares}
        batches = config.train_batches(self.data, index, **position)
        validate = None
        if config.eval_interval:
            at_once = phase.batch_size // accumulation_steps(config, index, self.mesh)
            validate = config.validator(index, self.data, at_once, self.mesh)
            self.log.say(f"validation is of {validate.sees}")
            if self._is_due(step):  # before the first step, or as the run was stopped before it
                self._validate(index, step, state, validate)
        monitor.begin(index + 1, self._reporter(index, state["params"]))
        while step < end and not self.stopped and not self.is_over:
            self._trace(step, monitor)
            batch = next(batches)
            accumulate, train_step = steps[_shapes(batch)]
            batch = put_batch(batch, accumulate, self.mesh)
            with jax.transfer_guard("disallow"):
                state, metrics = train_step(state, batch)
            step += 1
            monitor.push(step, metrics)
            self.log.advance(step)
            last = step == config.total_steps
            self.stopped = self.stop.after_step() and not last
            if self.stopped or last or step % config.checkpoint_interval == 0:
                with monitor.paused():  # all metrics up to here are seen to be finite first
                    self.checkpoints.save(step, state)
            if validate and not self.stopped and self._is_due(step):
                with monitor.paused():
                    self._validate(index, step, state, validate)
                    ends = self.stopped or self.is_over
                    if ends and not last and step % config.checkpoint_interval:
                        self.checkpoints.save(step, state)
        monitor.finish()
        self._trace(step, monitor)
        return state, step

    def _is_due(self, step: int) -> bool:
        """Whether there is to be a validation after `step` steps, and has not been."""
        config = self.config
        if step in self.selection.steps:
            return False
        if step == config.total_steps:
            return True
        return step % config.eval_interval == 0 if step else config.validates_first

    def _validate(self, index: int, step: int, state: State, validate: Validator) -> None:
        """Reports what a validation finds, and keeps the parameters if they are the best; neither where it is left."""
        config = self.config
        found = self.stop.unless_stopped(lambda: validate(state["params"]))
        values = from_first(found)  # by which all of them decide what is next
        if values is None:
            self.stopped = True
            return
        is_best = self.selection.add(step, values) and config.keep_best
        if is_best:  # before the log says so: a validation that is not in it is made again
            save_best(self.workdir, step, state["params"])
        self.log.write("validation", step, {config.unit: config.tokens_at(step), "phase": index + 1, **values})
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.log.say(
            f"step {step:,}/{config.total_steps:,}  phase {index + 1}  validation {numbers}" + ("  (best)" * is_best)
        )
        if is_best and jax.process_index() == 0:
            remove_bests(self.workdir, self.selection.needed(self.checkpoints.latest_step or 0))
        self.stopped = self.stop.received and step < config.total_steps  # without another step first

    def _reporter(self, index: int, params: Any) -> Report:
        """What a phase's `StepMonitor` calls with the means of an interval."""
        config = self.config
        total = config.tokens_at(config.total_steps)
        flops = config.flops_per_token(index, params, self.data)
        peak = peak_flops()

        def report(step: int, means: dict[str, float], seconds: float) -> None:
            tokens = config.tokens_at(step)
            if "loss" not in means:
                counts = {config.unit: tokens, "phase": index + 1, "skipped_steps": int(means["skipped"])}
                self.log.write("skipped", step, counts)
                return
            rate = (tokens - config.tokens_at(step - 1)) / seconds
            values = {
                config.unit: tokens,
                "phase": index + 1,
                config.score: means["loss"] / config.score_scale,
                "grad_norm": means["grad_norm"],
                "learning_rate": means["learning_rate"],
                f"{config.unit}_per_second": rate,
            }
            if peak:
                values["mfu"] = flops * rate / peak
            if config.optimizer.max_skipped_steps:
                values["skipped_steps"] = int(means["skipped"])
            self.log.write("train", step, values)
            utilisation = f"mfu {values['mfu']:.1%}  " if "mfu" in values else ""
            skipped = f"skipped {values['skipped_steps']}  " if values.get("skipped_steps") else ""
            self.log.say(
                f"step {step:,}/{config.total_steps:,}  phase {index + 1}  {config.score} {values[config.score]:.4f}  "
                f"grad {means['grad_norm']:.3f}  lr {means['learning_rate']:.2e}  {rate:,.0f} {config.unit_symbol}/s  "
                f"{utilisation}{skipped}eta {datetime.timedelta(seconds=round((total - tokens) / rate))}"
            )

        return report

    def _trace(self, step: int, monitor: StepMonitor) -> None:
        """Starts or ends the trace that `profile` asks for, where it is due after `step` steps."""
        if not self.profile or jax.process_index() != 0:
            return
        first = max(self.start, min(self.start + _PROFILED_STEPS, self.config.total_steps - _PROFILED_STEPS))
        is_over = self.stopped or self.is_over or step == self.config.total_steps
        if self.tracing and (step == first + _PROFILED_STEPS or is_over):
            with monitor.paused():
                jax.profiler.stop_trace()
            self.tracing = False
            self.log.say(f"wrote a trace of steps {first + 1:,} to {step:,} to {self.workdir / _PROFILE}")
        elif step == first and not self.tracing and not is_over:
            with monitor.paused():
                jax.profiler.start_trace(self.workdir / _PROFILE)
            self.tracing = True
