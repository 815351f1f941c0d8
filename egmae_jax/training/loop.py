"""The one training loop: resume, step, log, evaluate, save. Pre-training and fine-tuning use it.

Many steps run in one dispatch. How many is chosen by the clock, which changes nothing but how often
the progress bar moves: a step's batch and key depend on its number. While the device works, the
batches of the next dispatch are made ready.
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

from egmae_jax.core import platform, preemption, rng, sharding
from egmae_jax.core.console import ProgressBar
from egmae_jax.data.pipeline import MAX_STEPS, Order, Resident, Stream
from egmae_jax.training import nonfinite
from egmae_jax.training.checkpoint import Checkpoints
from egmae_jax.training.state import TrainState

PyTree = Any
logger = logging.getLogger(__name__)
_DISPATCH_SECONDS = 1.0  # target duration of a dispatch
# Least steps of a dispatch: on a CPU each allocates its memory anew, a tenth of a long step's time.
_MIN_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage trains on, and for how long."""

    stage: str  # such as 'finetune/mae', for the log and all randomness
    round_index: int
    seed: int
    files: Sequence[str]  # names of the images
    batch_size: int
    epochs: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, at least one."""
        return max(1, len(self.files) // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Total optimizer steps over all epochs."""
        return self.epochs * self.steps_per_epoch

    def place(self, step: int) -> str:
        """Says where training goes on after `step` steps, such as 'step 8 of 345 of pretrain'."""
        done = f"step {step} of {self.total_steps}" if step else "the beginning"
        return f"{done} of {self.stage}, round {self.round_index}"

    @functools.cached_property
    def order(self) -> Order:
        """The order of training: which images each batch has."""
        return Order(len(self.files), self.batch_size, (self.seed, rng.stage_id(self.stage)))

    @property
    def key(self) -> jax.Array:
        """Random key of the stage, into which each step folds its number."""
        return rng.stage_key(self.seed, self.stage)


class Log(Protocol):
    """Takes the metrics of every epoch; `run.logs.MetricsLog` writes them to metrics.jsonl."""

    def write(self, **row: Any) -> None:
        """Takes one epoch's stage, round, epoch, step, time and metrics."""

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Drops a stage's epochs after a step, which will be trained again."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What a stage of training is made of."""

    plan: Plan
    program: Callable  # the result of `compile_steps`
    create: Callable[[], TrainState]  # makes the initial state, on the devices
    feed: Callable[[], Resident | Stream]  # makes what feeds the steps; called if there are any
    schedule: optax.Schedule  # the learning rate, for the log
    checkpoints: Checkpoints
    save_seconds: float  # least time between two checkpoints; the last step is always saved
    log: Log
    policy: nonfinite.Policy  # for steps that are not finite
    # After each epoch: variables -> (score, metrics to log). The best score wins.
    evaluate: Callable[[PyTree], tuple[tuple[float, ...], dict[str, float]]] | None = None
    # Called with the epoch, the step and the variables, once the epoch is logged.
    after_epoch: Callable[[int, int, PyTree], None] | None = None


class Best(NamedTuple):
    """The best epoch so far, by validation score."""

    variables: PyTree  # on the host
    epoch: int
    score: tuple[float, ...]  # compared from the left


@dataclasses.dataclass
class Progress:
    """How far a stage has come: what a checkpoint holds."""

    state: TrainState
    step: int  # number of steps that led to `state`, on the host
    best: Best | None = None
    sums: dict[str, float] = dataclasses.field(default_factory=dict)  # metrics over this epoch
    skipped: list[int] = dataclasses.field(default_factory=list)  # steps left out

    def add(self, history: Mapping[str, np.ndarray]) -> None:
        """Adds the metrics of steps, arrays [steps], to those of the epoch under way."""
        for name, values in history.items():
            for value in values.tolist():  # one by one: the sum must not depend on the dispatches
                self.sums[name] = self.sums.get(name, 0.0) + value


def train(stage: Stage) -> tuple[TrainState, Best | None]:
    """Trains from the newest checkpoint, or from the beginning, to the last epoch.

    Returns:
        The last state and the best epoch (None without `stage.evaluate`).

    Raises:
        NonFiniteError: a step is not finite, and `stage.policy` does not skip it.
        Preempted: SIGTERM or Ctrl-C came, to any host; the steps done are saved.
    """
    plan, progress = stage.plan, restore(stage)
    if progress.step == plan.total_steps:
        return progress.state, progress.best
    feeder = Feeder(stage.feed(), plan)
    saved_at = time.monotonic()
    with (
        ProgressBar(
            f"{plan.stage}, round {plan.round_index}", plan.total_steps, progress.step
        ) as bar,
        preemption.Deferral() as deferral,
    ):
        while progress.step < plan.total_steps:
            steps = dispatch(stage, progress, feeder)
            deferral.begin()  # all is compiled, and there are steps to save
            is_finite = nonfinite.is_finite(progress.state, steps.history["loss"])
            if is_finite:
                progress.add(steps.history)
            else:
                skip_bad_step(stage, progress, feeder, first=steps.first)
            bar.update(progress.step, steps.history["loss"][-1], steps.images_per_second)
            if progress.step % plan.steps_per_epoch == 0:
                end_epoch(stage, progress, bar, steps.images_per_second)
            is_due = not is_finite or time.monotonic() - saved_at >= stage.save_seconds
            # What the clock and signals say, all hosts must do alike.
            feeder.wanted, stopping, must_save = map(
                int, sharding.agree(steps.wanted, deferral.requested, is_due)
            )
            if must_save or stopping or progress.step == plan.total_steps:
                save(stage, progress)
                saved_at = time.monotonic()
            deferral.stop(stopping)
    return progress.state, progress.best


class Feeder:
    """The batches of each dispatch, which are made ready while the device still works.

    Attributes:
        wanted: steps of the next dispatch, at most; it ends with the epoch.
    """

    def __init__(self, source: Resident | Stream, plan: Plan):
        # It grows with what the clock shows; the first dispatch also compiles.
        self.wanted = _MIN_STEPS
        self._source, self._plan = source, plan
        self._ready: tuple[int, tuple[int, Any]] | None = None

    def prepare(self, step: int) -> None:
        """Makes the batches from a step on ready, unless it is the end."""
        if step < self._plan.total_steps:
            self._ready = step, self.take(step, self.wanted)

    def take(self, step: int, at_most: int | None = None) -> tuple[int, Any]:
        """How many steps the dispatch from `step` on has, and their batches."""
        if at_most is None:
            if self._ready is not None and self._ready[0] == step:
                return self._ready[1]
            at_most = _MIN_STEPS
        left = self._plan.steps_per_epoch - step % self._plan.steps_per_epoch
        return self._source.steps(step, min(at_most, left))


class Steps(NamedTuple):
    """Steps that one dispatch has done."""

    first: int  # number of the first
    history: dict[str, np.ndarray]  # their metrics, [steps] each
    images_per_second: float
    wanted: int  # steps that would take `_DISPATCH_SECONDS`


def dispatch(stage: Stage, progress: Progress, feeder: Feeder) -> Steps:
    """Runs the next steps and makes those after them ready meanwhile."""
    started, first = time.monotonic(), progress.step
    count, batches = feeder.take(first)
    progress.state, history = stage.program(progress.state, batches, stage.plan.key, count)
    progress.step += count
    feeder.prepare(progress.step)
    history = {name: np.asarray(values)[:count] for name, values in history.items()}  # waits
    seconds = time.monotonic() - started
    wanted = max(_MIN_STEPS, round(count * _DISPATCH_SECONDS / seconds))
    return Steps(first, history, count * stage.plan.batch_size / seconds, wanted)


def end_epoch(stage: Stage, progress: Progress, bar: ProgressBar, images_per_second: float) -> None:
    """Evaluates, keeps the best, and logs the means of the epoch that has ended."""
    plan, epoch = stage.plan, progress.step // stage.plan.steps_per_epoch
    skipped = sum(s >= progress.step - plan.steps_per_epoch for s in progress.skipped)
    steps = plan.steps_per_epoch - skipped
    row = {name: total / steps for name, total in progress.sums.items()}
    if skipped:
        row["skipped_steps"] = skipped
    progress.sums = {}
    if stage.evaluate is not None:
        score, validation = stage.evaluate(progress.state.variables)
        row |= validation
        if progress.best is None or score > progress.best.score:
            progress.best = Best(sharding.to_host(progress.state.variables), epoch, score)
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
    if stage.after_epoch is not None:
        stage.after_epoch(epoch, progress.step, progress.state.variables)


def restore(stage: Stage) -> Progress:
    """The progress that the newest checkpoint holds, or that of the beginning."""
    plan, progress = stage.plan, _newest(stage)
    stage.log.forget(plan.stage, plan.round_index, after_step=progress.step)
    stage.policy.forget(plan.stage, plan.round_index, after_step=progress.step)
    preemption.set_resume_point(plan.place(progress.step))
    return progress


def _newest(stage: Stage) -> Progress:
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
    """Saves a checkpoint."""
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
    preemption.set_resume_point(stage.plan.place(progress.step))


def skip_bad_step(stage: Stage, progress: Progress, feeder: Feeder, *, first: int) -> None:
    """Finds the first step that is not finite, of those from `first` on; goes on after it.

    Raises:
        NonFiniteError: it may not be skipped, or the device does not compute the same twice.
    """
    plan = stage.plan

    def run(state: TrainState, at_most: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        count, batches = feeder.take(int(state.step), at_most)
        state, history = stage.program(state, batches, plan.key, count)
        return state, {name: np.asarray(values)[:count] for name, values in history.items()}

    progress.state = _newest(stage).state  # in place of the bad one, whose memory is needed
    bad = nonfinite.find_bad_step(progress.state, run, first=first, last=progress.step)
    if bad is None:
        raise nonfinite.NonFiniteError(
            f"Steps {first + 1} to {progress.step} of {plan.stage} were not finite, but when they "
            "were repeated it was otherwise: the device does not compute the same twice. The same "
            "command goes on from the last checkpoint."
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
    """Makes the program that runs many steps in one dispatch.

    Args:
        step_fn: (state, batch, key) -> (state, metrics), one training step.
        mesh: the devices.

    Returns:
        A jitted function (state, ResidentSteps or StreamedSteps, stage key, number of steps) ->
        (state, metrics [MAX_STEPS]). The number of steps is data, not shape: one compilation serves
        all of them.
    """

    @functools.partial(platform.jit, donate_argnums=0)
    def run(state, steps, key, num_steps):
        @jax.jit  # traced once, for the metrics' shapes and for the loop
        def one_step(i, state):
            # Kept in parts, variables are gathered for the step: else the compiler might gather
            # activations instead, which are larger.
            whole = state.replace(
                params=sharding.gather(state.params, mesh),
                batch_stats=sharding.gather(state.batch_stats, mesh),
            )
            return step_fn(whole, steps.batch(i, mesh), jax.random.fold_in(key, state.step))

        def body(i, carry):
            state, history = carry
            state, metrics = one_step(jnp.int32(i), state)
            state = sharding.keep_state(state, mesh)
            return state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

        _, metrics = jax.eval_shape(one_step, jnp.int32(0), state)
        history = jax.tree.map(lambda m: jnp.zeros(MAX_STEPS, m.dtype), metrics)
        state, history = jax.lax.fori_loop(0, num_steps, body, (state, history))
        return state, sharding.gather(history, mesh)

    return run
