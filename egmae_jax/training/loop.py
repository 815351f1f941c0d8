"""The training loop of both stages, pre-training and fine-tuning: resume, step, evaluate, save.

Several steps run in one dispatch. Their number follows from measured time and does not affect the
result, because the batch and the random key of a step depend only on its number. While the device
computes, the host prepares the batches of the next dispatch.
"""

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from egmae_jax.core import hosts, platform, preemption, rng, sharding
from egmae_jax.core.progress import ProgressBar
from egmae_jax.data.pipeline import MAX_STEPS, Order, Resident, Stream
from egmae_jax.training import nonfinite
from egmae_jax.training.checkpoint import Checkpoints
from egmae_jax.training.state import TrainState

PyTree = Any
logger = logging.getLogger(__name__)
_DISPATCH_SECONDS = 1.0  # target duration of a dispatch
# Fewest steps per dispatch. On a CPU, each dispatch first allocates its memory, which takes a tenth
# of a long step.
_MIN_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """Training images, batch size and number of epochs of a stage."""

    stage: str  # name such as 'finetune/mae', for the log and the random keys
    round_index: int
    seed: int  # seed of the round
    files: Sequence[str]  # names of the training images
    batch_size: int  # images per step
    epochs: int
    # Relative frequencies with which images are drawn with replacement, float [len(files)]; None:
    # every image is drawn once before any is drawn again.
    sampling_weights: np.ndarray | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps per epoch, at least one."""
        return max(1, len(self.files) // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Total number of optimizer steps over all epochs."""
        return self.epochs * self.steps_per_epoch

    def resume_point(self, step: int) -> str:
        """Describes the state after `step` steps: 'step 8 of 345 of pretrain, round 0'."""
        done = f"step {step} of {self.total_steps}" if step else "the beginning"
        return f"{done} of {self.stage}, round {self.round_index}"

    @functools.cached_property
    def order(self) -> Order:
        """Order of the training images: indices of the images in each batch."""
        seed = self.seed, rng.stage_id(self.stage)
        return Order(len(self.files), self.batch_size, seed, self.sampling_weights)

    @property
    def key(self) -> jax.Array:
        """Random key of the stage; each step folds its number into it."""
        return rng.stage_key(self.seed, self.stage)


class Log(Protocol):
    """Log of the metrics of every epoch, such as `run.logs.MetricsLog`."""

    def write(self, **row: Any) -> None:
        """Logs stage, round, epoch, step, time and metrics of one epoch."""

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Deletes a stage's epochs after `after_step`, which will be trained again."""


class Policy(Protocol):
    """Treatment of steps that are not finite, such as `run.nonfinite.Policy`."""

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Deletes the reports on a stage's steps after `after_step`, which will be repeated."""

    def record_bad_step(self, description: Mapping[str, Any], *, in_a_row: int) -> str:
        """Reports a step; returns a warning if it is skipped, and raises NonFiniteError if not."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that `train` needs to train one stage."""

    plan: Plan
    program: Callable  # result of `compile_steps`
    create: Callable[[], TrainState]  # returns the initial state on the devices
    feed: Callable[[], Resident | Stream]  # returns the source of batches; called if steps remain
    schedule: optax.Schedule  # learning rate by step, for the log
    checkpoints: Checkpoints
    save_seconds: float  # shortest time between two checkpoints; the last step is always saved
    log: Log
    policy: Policy
    # Called after each epoch: variables -> (score, metrics to log). The highest score is the best.
    evaluate: Callable[[PyTree], tuple[tuple[float, ...], dict[str, float]]] | None = None
    # Number of epochs without a better score after which training ends early; 0: it does not.
    patience: int = 0
    # Called after each epoch: (epoch, step, variables) -> metrics to log, which choose nothing.
    after_epoch: Callable[[int, int, PyTree], dict[str, float]] | None = None
    # Estimates the seconds left of the whole run: (steps done, images/s) -> seconds, for display.
    seconds_left: Callable[[int, float], float] | None = None


class Best(NamedTuple):
    """The best epoch so far, by validation score."""

    variables: PyTree  # numpy arrays on the host
    epoch: int
    score: tuple[float, ...]  # the first element counts most


@dataclasses.dataclass
class Progress:
    """Progress of a stage; checkpoints save it."""

    state: TrainState
    step: int  # number of steps done, on the host
    best: Best | None = None
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # metric totals of the epoch
    skipped: list[int] = dataclasses.field(default_factory=list)  # numbers of skipped steps

    def add(self, history: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of some steps, arrays [steps], to the sums of the current epoch."""
        for name, values in history.items():
            for value in values.tolist():  # singly, so the sum does not depend on the dispatches
                self.sums[name] = self.sums.get(name, 0.0) + value


def train(stage: Stage) -> tuple[TrainState, Best | None]:
    """Trains a stage to its last epoch, from the newest checkpoint if there is one.

    With `stage.patience`, training may end after an earlier epoch.

    Returns:
        The last state, and the best epoch (None without `stage.evaluate`).

    Raises:
        NonFiniteError: a step is not finite, and `stage.policy` does not skip it.
        Preempted: a host received SIGTERM or Ctrl-C; the steps done have been saved.
    """
    plan, progress = stage.plan, restore(stage)
    if is_finished(stage, progress):
        return progress.state, progress.best
    feeder = Feeder(stage.feed(), plan)
    saved_at = time.monotonic()
    with (
        ProgressBar(
            f"{plan.stage}, round {plan.round_index}",
            plan.total_steps,
            progress.step,
            stage.seconds_left,
        ) as bar,
        preemption.Deferral() as deferral,
    ):
        while not is_finished(stage, progress):
            steps = dispatch(stage, progress, feeder)
            deferral.begin()  # the program is compiled and has done steps worth saving
            is_finite = nonfinite.is_finite(progress.state, steps.history["loss"])
            if is_finite:
                progress.add(steps.history)
            else:
                skip_bad_step(stage, progress, feeder, first=steps.first)
            bar.update(progress.step, steps.history["loss"][-1], steps.images_per_second)
            if progress.step % plan.steps_per_epoch == 0:
                end_epoch(stage, progress, bar, steps.images_per_second)
            is_due = not is_finite or time.monotonic() - saved_at >= stage.save_seconds
            # Times and signals differ between hosts, but all hosts must do the same.
            feeder.target_steps, stop_signal, must_save = map(
                int, hosts.agree(steps.target_steps, deferral.requested, is_due)
            )
            if must_save or stop_signal or is_finished(stage, progress):
                save(stage, progress)
                saved_at = time.monotonic()
            deferral.stop(stop_signal)
    return progress.state, progress.best


def is_finished(stage: Stage, progress: Progress) -> bool:
    """Whether all steps are done, or no better epoch has come for `stage.patience` epochs."""
    if stage.patience and progress.best is not None:
        epochs = progress.step // stage.plan.steps_per_epoch
        if epochs - progress.best.epoch >= stage.patience:
            return True
    return progress.step == stage.plan.total_steps


class Feeder:
    """Prepares the batches of the next dispatch while the device computes.

    Attributes:
        target_steps: largest number of steps of the next dispatch, which also ends with the epoch.
    """

    def __init__(self, source: Resident | Stream, plan: Plan):
        # `train` adapts it to the measured time; the first dispatch also compiles.
        self.target_steps = _MIN_STEPS
        self._source, self._plan = source, plan
        self._ready: tuple[int, tuple[int, Any]] | None = None

    def prepare(self, step: int) -> None:
        """Prepares the batches of the dispatch from `step` on, unless training is complete."""
        if step < self._plan.total_steps:
            self._ready = step, self.take(step, self.target_steps)

    def take(self, step: int, at_most: int | None = None) -> tuple[int, Any]:
        """Returns the number of steps in the dispatch from `step` on, and their batches.

        Args:
            step: number of the first step.
            at_most: largest number of steps; None returns the prepared batches, if any.
        """
        if at_most is None:
            if self._ready is not None and self._ready[0] == step:
                return self._ready[1]
            at_most = _MIN_STEPS
        left = self._plan.steps_per_epoch - step % self._plan.steps_per_epoch
        return self._source.steps(step, min(at_most, left))


class Steps(NamedTuple):
    """Result of a dispatch."""

    first: int  # number of the first step
    history: dict[str, np.ndarray]  # metrics of the steps, [steps] each
    images_per_second: float
    target_steps: int  # number of steps that would take `_DISPATCH_SECONDS`


def dispatch(stage: Stage, progress: Progress, feeder: Feeder) -> Steps:
    """Runs the next steps on the device and meanwhile prepares the following batches."""
    started, first = time.monotonic(), progress.step
    count, batches = feeder.take(first)
    progress.state, history = stage.program(progress.state, batches, stage.plan.key, count)
    progress.step += count
    feeder.prepare(progress.step)
    # np.asarray waits for the device.
    history = {name: np.asarray(values)[:count] for name, values in history.items()}
    seconds = time.monotonic() - started
    target_steps = max(_MIN_STEPS, round(count * _DISPATCH_SECONDS / seconds))
    return Steps(first, history, count * stage.plan.batch_size / seconds, target_steps)


def end_epoch(stage: Stage, progress: Progress, bar: ProgressBar, images_per_second: float) -> None:
    """Evaluates after an epoch, keeps the best variables, and logs the epoch's mean metrics.

    If the state has a moving average, both are evaluated, and the average is what is kept.
    """
    plan, epoch = stage.plan, progress.step // stage.plan.steps_per_epoch
    skipped = sum(s >= progress.step - plan.steps_per_epoch for s in progress.skipped)
    steps = plan.steps_per_epoch - skipped
    row = {name: total / steps for name, total in progress.sums.items()}
    if skipped:
        row["skipped_steps"] = skipped
    progress.sums = {}
    if stage.evaluate is not None:
        variables = progress.state.variables
        score, validation = stage.evaluate(variables)
        row |= validation
        if (averaged := progress.state.averaged_variables) is not None:
            variables = averaged
            score, validation = stage.evaluate(variables)
            row |= {f"ema_{name}": value for name, value in validation.items()}
        if progress.best is None or score > progress.best.score:
            progress.best = Best(sharding.to_host(variables), epoch, score)
    if stage.after_epoch is not None:
        row |= stage.after_epoch(epoch, progress.step, progress.state.variables)
    row["learning_rate"] = float(stage.schedule(progress.step - 1))
    row["images_per_second"] = images_per_second
    stage.log.write(
        stage=plan.stage,
        round=plan.round_index,
        epoch=epoch,
        step=progress.step,
        time=time.time(),  # seconds since 1970
        **row,
    )
    bar.epoch(epoch, plan.epochs, row)


def restore(stage: Stage) -> Progress:
    """Returns the progress from the newest checkpoint, or the initial one if there is none.

    Log rows and reports of later steps, which will be repeated, are deleted.
    """
    plan, progress = stage.plan, _load_newest(stage)
    stage.log.forget(plan.stage, plan.round_index, after_step=progress.step)
    stage.policy.forget(plan.stage, plan.round_index, after_step=progress.step)
    preemption.set_resume_point(plan.resume_point(progress.step))
    return progress


def _load_newest(stage: Stage) -> Progress:
    state = stage.create()
    if not stage.checkpoints.steps:
        return Progress(state, 0)
    abstract = {"state": state, "best": sharding.to_host(state.variables)}
    restored = stage.checkpoints.restore(abstract)
    if restored is None:
        return Progress(state, 0)
    saved, notes = restored
    best = None
    if notes["best_epoch"] is not None:
        best = Best(saved["best"], notes["best_epoch"], tuple(notes["best_score"]))
    step = int(saved["state"].step)
    return Progress(saved["state"], step, best, notes["epoch_metrics"], notes["skipped"])


def save(stage: Stage, progress: Progress) -> None:
    """Saves the progress as a checkpoint."""
    best = progress.best
    variables = best.variables if best else sharding.to_host(progress.state.variables)
    stage.checkpoints.save(
        progress.step,
        {"state": progress.state, "best": variables},
        {
            "epoch_metrics": progress.sums,
            "best_epoch": best.epoch if best else None,
            "best_score": list(best.score) if best else None,
            "skipped": progress.skipped,
        },
    )
    preemption.set_resume_point(stage.plan.resume_point(progress.step))


def skip_bad_step(stage: Stage, progress: Progress, feeder: Feeder, *, first: int) -> None:
    """Skips the first step that is not finite, so that training continues after it.

    Args:
        stage: the stage.
        progress: progress after the dispatch with the bad step; changed in place.
        feeder: source of the batches.
        first: number of the first step of that dispatch.

    Raises:
        NonFiniteError: the step must not be skipped, or the device does not compute the same twice.
    """
    plan = stage.plan

    def run(state: TrainState, at_most: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        count, batches = feeder.take(int(state.step), at_most)
        state, history = stage.program(state, batches, plan.key, count)
        return state, {name: np.asarray(values)[:count] for name, values in history.items()}

    progress.state = _load_newest(stage).state  # frees the memory of the bad state
    bad = nonfinite.find_bad_step(progress.state, run, first=first, last=progress.step)
    if bad is None:
        raise nonfinite.NonFiniteError(
            f"One of steps {first + 1} to {progress.step} of {plan.stage} was not finite, but "
            "repeating them gave another result: the device does not compute the same twice. Run "
            "the same command again to resume from the last checkpoint."
        )
    progress.add(bad.history)
    progress.state, progress.step = bad.before, int(bad.before.step)
    if progress.step not in stage.checkpoints.steps:
        save(stage, progress)
    skipped_before = next(
        n for n in itertools.count() if progress.step - 1 - n not in progress.skipped
    )
    description = {
        "stage": plan.stage,
        "round": plan.round_index,
        "step": progress.step + 1,
        "epoch": progress.step // plan.steps_per_epoch + 1,
        "loss": bad.loss,
        "learning_rate": float(stage.schedule(progress.step)),
        "images": [plan.files[i] for i in plan.order[progress.step]],
    }
    warning = stage.policy.record_bad_step(description, in_a_row=skipped_before)
    logger.warning(warning)
    progress.skipped.append(progress.step)
    progress.state = dataclasses.replace(progress.state, step=progress.state.step + 1)
    progress.step += 1


def compile_steps(step_fn: Callable, mesh: Mesh) -> Callable:
    """Returns the jitted program that runs several steps in one dispatch.

    Args:
        step_fn: one training step, `(state, batch, key, **arguments)` -> (state, metrics).
        mesh: mesh of the devices.

    Returns:
        A function (state, ResidentSteps or StreamedSteps, stage key, number of steps) ->
        (state, metrics [MAX_STEPS]). The number of steps is not static, so it is compiled once.
        Further arguments by name are passed on to `step_fn`.
    """

    @functools.partial(platform.jit, donate_argnums=0)
    @platform.over(mesh)
    def run(state, steps, key, num_steps, **arguments):
        # All at once, since a GPU would run a kernel for each in the loop.
        numbers = state.step + jnp.arange(MAX_STEPS, dtype=state.step.dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

        @jax.jit  # so it is traced only once, for the metrics' shapes and for the loop
        def one_step(i, state):
            # Sharded variables are gathered for the step; otherwise the compiler might gather the
            # activations, which are larger.
            gathered = state.replace(
                params=sharding.gather(state.params, mesh),
                batch_stats=sharding.gather(state.batch_stats, mesh),
            )
            batch = steps.batch(i, mesh)
            return step_fn(gathered, batch, keys[i], **arguments)

        def body(i, carry):
            state, history = carry
            state, metrics = one_step(jnp.int32(i), state)
            state = sharding.keep_state(state, mesh)
            row = jnp.stack(jax.tree.leaves(metrics))
            return state, jax.lax.dynamic_update_index_in_dim(history, row, i, axis=0)

        _, metrics = jax.eval_shape(one_step, jnp.int32(0), state)
        values, names = jax.tree.flatten(metrics)
        history = jnp.zeros((MAX_STEPS, len(values)), jnp.result_type(*values))
        state, history = jax.lax.fori_loop(0, num_steps, body, (state, history))
        return state, sharding.gather(jax.tree.unflatten(names, list(history.T)), mesh)

    return run
