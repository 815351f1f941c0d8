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
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from egmae_jax.core import platform, preemption, rng, sharding
from egmae_jax.core.console import Progress
from egmae_jax.data.pipeline import MAX_STEPS, Order, Resident, Stream
from egmae_jax.training import nonfinite
from egmae_jax.training.checkpoint import Checkpoints
from egmae_jax.training.state import TrainState

PyTree = Any
logger = logging.getLogger(__name__)
_DISPATCH_SECONDS = 1.0  # aimed at, with at least
_MIN_STEPS = 4  # of a dispatch: on CPU each gets its memory anew, a tenth of a long step's time


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
    def section(self) -> str:
        """Of the config."""
        return self.stage.split("/")[0]

    @property
    def steps_per_epoch(self) -> int:
        """At least one."""
        return max(1, len(self.files) // self.batch_size)

    @property
    def total_steps(self) -> int:
        """Of all epochs."""
        return self.epochs * self.steps_per_epoch

    def place(self, step: int) -> str:
        """Where training goes on that has done `step` steps, in words."""
        done = f"step {step} of {self.total_steps}" if step else "the beginning"
        return f"{done} of {self.stage}, round {self.round_index}"

    @functools.cached_property
    def order(self) -> Order:
        """Which images each batch has."""
        return Order(len(self.files), self.batch_size, (self.seed, rng.stage_id(self.stage)))

    @property
    def key(self) -> jax.Array:
        """Of the stage; a step's is folded in."""
        return rng.stage_key(self.seed, self.stage)


class Log(Protocol):
    """Takes the metrics of every epoch; `run.logs.MetricsLog` writes them to metrics.jsonl."""

    def write(self, **row: Any) -> None:
        """Takes one epoch's stage, round, epoch, step, time and metrics."""

    def forget(self, stage: str, round_index: int, *, after_step: int) -> None:
        """Drops a stage's epochs after a step, which will be trained again."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch so far, by validation score."""

    variables: PyTree  # on the host
    epoch: int
    score: tuple[float, ...]  # compared from the left


def compile_steps(step_fn: Callable, mesh: Mesh) -> Callable:
    """Makes the program that runs many steps in one dispatch.

    `step_fn(state, batch, key) -> (state, metrics)`. The program takes (state, ResidentSteps or
    StreamedSteps, stage key, number of steps) and returns the state and metrics [MAX_STEPS]. The
    number of steps is data, not shape: one compilation serves all of them.
    """

    @functools.partial(platform.jit, donate_argnums=0)
    def run(state, steps, key, num_steps):
        @jax.jit  # traced once, for the metrics' shapes and for the loop
        def one_step(i, state):
            # Kept in parts, parameters are gathered for the step: else the compiler might gather
            # activations instead, which are larger.
            whole = state.replace(params=sharding.gather(state.params, mesh))
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


def train(
    plan: Plan,
    *,
    program: Callable,
    create: Callable[[], TrainState],
    feed: Callable[[], Resident | Stream],
    schedule: optax.Schedule,
    checkpoints: Checkpoints,
    save_seconds: float,
    log: Log,
    policy: nonfinite.Policy,
    evaluate: Callable[[PyTree], tuple[tuple[float, ...], dict[str, float]]] | None = None,
    after_epoch: Callable[[int, int, PyTree], None] | None = None,
) -> tuple[TrainState, Best | None]:
    """Trains from the newest checkpoint, or from the beginning, to the last epoch.

    Args:
        plan: of the stage.
        program: of `compile_steps`.
        create: makes the initial state, on the devices.
        feed: gives what feeds the steps; called if there are any to do.
        schedule: the learning rate, for the log.
        checkpoints: of this stage.
        save_seconds: least time between two checkpoints; the last step is always saved.
        log: metrics.jsonl.
        policy: for steps that are not finite.
        evaluate: after each epoch, variables -> (score, metrics to log); the best score wins.
        after_epoch: called with the epoch, the step and variables, once the epoch is logged.

    Returns:
        The last state and the best epoch (None without `evaluate`).

    Raises:
        NonFiniteError: a step is not finite, and `policy` does not leave it out.
        Preempted: SIGTERM or Ctrl-C came, to any host; the steps done are saved.
    """
    best: Best | None = None
    epoch_metrics: dict[str, float] = {}  # summed over the steps of the epoch under way
    skipped: list[int] = []  # steps left out

    def begin() -> tuple[TrainState, dict[str, Any] | None]:
        """The newest checkpoint's state, with its notes; or the initial one."""
        state = create()
        if checkpoints.steps:
            host = sharding.to_host(state.variables)
            found = checkpoints.restore({"state": state, "best": host})
            if found is not None:
                saved, notes = found
                return saved["state"], notes | {"best": saved["best"]}
        return state, None

    state, notes = begin()
    if notes is not None:
        epoch_metrics, skipped = notes["epoch_metrics"], notes["skipped"]
        if notes["best_epoch"] is not None:
            best = Best(notes["best"], notes["best_epoch"], tuple(notes["best_score"]))
    step, total_steps, steps_per_epoch = int(state.step), plan.total_steps, plan.steps_per_epoch
    log.forget(plan.stage, plan.round_index, after_step=step)
    policy.forget(plan.stage, plan.round_index, after_step=step)
    preemption.goes_on_from(plan.place(step))

    def save() -> None:
        kept = best.variables if best else sharding.to_host(state.variables)
        checkpoints.save(
            step,
            {"state": state, "best": kept},
            {
                "epoch_metrics": epoch_metrics,
                "best_epoch": best.epoch if best else None,
                "best_score": list(best.score) if best else None,
                "skipped": skipped,
            },
        )
        preemption.goes_on_from(plan.place(step))

    def add_up(history: dict[str, np.ndarray]) -> None:
        for name, values in history.items():
            for value in values.tolist():  # one by one: the sum must not depend on the dispatches
                epoch_metrics[name] = epoch_metrics.get(name, 0.0) + value

    if step == total_steps:
        return state, best
    source, key = feed(), plan.key

    def next_steps(step: int, wanted: int) -> tuple[int, Any]:
        """How many steps the next dispatch has, and their batches; it ends with the epoch."""
        return source.steps(step, min(wanted, steps_per_epoch - step % steps_per_epoch))

    def run_again(state: TrainState, at_most: int) -> tuple[TrainState, dict[str, np.ndarray]]:
        count, batches = next_steps(int(state.step), at_most)
        state, history = program(state, batches, key, count)
        return state, {name: np.asarray(h)[:count] for name, h in history.items()}

    def leave_out_bad_step(first: int) -> None:
        """Finds the first step that is not finite, of those from `first` on; goes on after it."""
        nonlocal state, step
        state, _ = begin()
        bad = nonfinite.find(state, run_again, first=first, last=step)
        if bad is None:
            raise nonfinite.NonFiniteError(
                f"Steps {first + 1} to {step} of {plan.stage} were not finite, but when they were "
                "repeated it was otherwise: the device does not compute the same twice. The same "
                "command goes on from the last checkpoint."
            )
        add_up(bad.history)
        state, step = bad.before, int(bad.before.step)
        if step not in checkpoints.steps:
            save()
        told = policy.leave_out(
            stage=plan.stage,
            round_index=plan.round_index,
            step=step + 1,
            epoch=step // steps_per_epoch + 1,
            loss=bad.loss,
            learning_rate=float(schedule(step)),
            images=[plan.files[i] for i in plan.order[step]],
            in_a_row=next(n for n in itertools.count() if step - 1 - n not in skipped),
        )
        logger.warning(told)
        skipped.append(step)
        state, step = state.replace(step=state.step + 1), step + 1

    wanted = _MIN_STEPS  # grows with what the clock shows; the first dispatch also compiles
    num_steps, batches = next_steps(step, wanted)
    last_save = time.monotonic()
    with (
        Progress(f"{plan.stage}, round {plan.round_index}", total_steps, step) as progress,
        preemption.Deferral() as deferral,
    ):
        while step < total_steps:
            started = time.monotonic()
            state, history = program(state, batches, key, num_steps)
            done, first = num_steps, step
            step += num_steps
            if step < total_steps:  # while the device works
                num_steps, batches = next_steps(step, wanted)
            history = {name: np.asarray(h)[:done] for name, h in history.items()}
            seconds = time.monotonic() - started
            deferral.begin()  # all is compiled, and there are steps to save
            if nonfinite.is_finite(state, history["loss"]):
                add_up(history)
                save_is_due = time.monotonic() - last_save >= save_seconds
            else:
                leave_out_bad_step(first)
                save_is_due = True
                if step < total_steps:
                    num_steps, batches = next_steps(step, _MIN_STEPS)
            images_per_second = done * plan.batch_size / seconds
            progress.update(step, history["loss"][-1], images_per_second)
            if step % steps_per_epoch == 0:
                epoch = step // steps_per_epoch
                left_out = sum(step - steps_per_epoch <= s < step for s in skipped)
                row = {
                    name: total / (steps_per_epoch - left_out)
                    for name, total in epoch_metrics.items()
                }
                if left_out:
                    row["skipped_steps"] = left_out
                epoch_metrics = {}
                if evaluate is not None:
                    score, validation = evaluate(state.variables)
                    row |= validation
                    if best is None or score > best.score:
                        best = Best(sharding.to_host(state.variables), epoch, score)
                row |= {
                    "learning_rate": float(schedule(step - 1)),
                    "images_per_second": images_per_second,
                }
                log.write(
                    stage=plan.stage,
                    round=plan.round_index,
                    epoch=epoch,
                    step=step,
                    time=time.time(),  # seconds since 1970
                    **row,
                )
                progress.epoch(epoch, plan.epochs, row)
                if after_epoch is not None:
                    after_epoch(epoch, step, state.variables)
            # What the clock and signals say, all hosts must do alike.
            wanted, stopping, must_save = map(
                int,
                sharding.agree(
                    max(_MIN_STEPS, round(done * _DISPATCH_SECONDS / seconds)),
                    deferral.requested,
                    save_is_due,
                ),
            )
            if must_save or stopping or step == total_steps:
                save()
                last_save = time.monotonic()
            deferral.stop(stopping)
    return state, best
