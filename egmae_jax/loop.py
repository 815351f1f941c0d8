"""The one training loop: resume, step, log, evaluate, save. Pre-training and fine-tuning use it.

Many steps run in one dispatch. How many is chosen by the clock, which changes nothing but how often
the progress bar moves: a step's batch and key depend on its number. While the device works, the
batches of the next dispatch are made ready.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from egmae_jax import compilation, preemption, sharding, trainable
from egmae_jax.checkpoint import Checkpoints
from egmae_jax.console import Progress
from egmae_jax.data.pipeline import MAX_STEPS, Resident, Stream
from egmae_jax.metrics_log import MetricsLog

PyTree = Any
_DISPATCH_SECONDS = 1.0  # aimed at, with at least
_MIN_STEPS = 2  # of a dispatch: on CPU each gets its memory anew, a tenth of a long step's time


class NonFiniteLossError(RuntimeError):
    """The loss is NaN or infinite; the message says where and what to try."""


@struct.dataclass
class TrainState:
    """Everything that a step changes."""

    step: jax.Array  # int32, steps done
    params: PyTree  # all of them, and the statistics of batch norms
    opt_state: PyTree  # of those that train

    @classmethod
    def create(
        cls,
        params: PyTree,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        prefixes: tuple[str, ...] = trainable.EVERYTHING,
    ) -> "TrainState":
        """The state before the first step, on the devices.

        Args:
            params: all of them.
            optimizer: of those that train.
            mesh: the devices.
            prefixes: of the paths of those that train.
        """
        step = sharding.replicate(np.int32(0), mesh)
        params = sharding.place(params, sharding.state_shardings(params, mesh))
        # Jitted, it is one program instead of one for every shape. It runs once.
        trained = trainable.split(params, prefixes)[0]
        shapes = jax.eval_shape(optimizer.init, trained)
        init = jax.jit(
            optimizer.init,
            out_shardings=sharding.state_shardings(shapes, mesh),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        return cls(step, params, init(trained))

    def update(
        self,
        optimizer: optax.GradientTransformation,
        gradients: PyTree,
        statistics: PyTree | None = None,
    ) -> "TrainState":
        """The state after one step of the optimizer.

        Args:
            optimizer: of the parameters that train.
            gradients: of those parameters.
            statistics: new values of batch norms' statistics.
        """
        trained = trainable.restrict(self.params, gradients)
        updates, opt_state = optimizer.update(gradients, self.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = trainable.merge(self.params, trained, statistics or {})
        return TrainState(self.step + 1, params, opt_state)


@dataclasses.dataclass(frozen=True)
class Best:
    """The best epoch so far, by validation score."""

    params: PyTree  # on the host
    epoch: int
    score: tuple[float, ...]  # compared from the left


def compile_steps(step_fn: Callable, mesh: Mesh) -> Callable:
    """Makes the program that runs many steps in one dispatch.

    `step_fn(state, batch, key) -> (state, metrics)`. The program takes (state, ResidentSteps or
    StreamedSteps, stage key, number of steps) and returns the state and metrics [MAX_STEPS]. The
    number of steps is data, not shape: one compilation serves all of them.
    """

    @functools.partial(compilation.jit, donate_argnums=0)
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
    *,
    stage: str,
    round_index: int,
    program: Callable,
    state: TrainState,
    feed: Callable[[], Resident | Stream],
    batch_size: int,
    key: jax.Array,
    epochs: int,
    steps_per_epoch: int,
    schedule: optax.Schedule,
    checkpoints: Checkpoints,
    save_seconds: float,
    log: MetricsLog,
    evaluate: Callable[[PyTree], tuple[tuple[float, ...], dict[str, float]]] | None = None,
) -> tuple[TrainState, Best | None]:
    """Trains from the newest checkpoint, or from `state`, to the last epoch.

    Args:
        stage: name for log and progress, e.g. 'finetune/mae'.
        round_index: likewise.
        program: of `compile_steps`.
        state: the initial state, on the devices; donated.
        feed: gives what feeds the steps; called if there are any to do.
        batch_size: of its batches.
        key: of the stage.
        epochs: to train.
        steps_per_epoch: likewise.
        schedule: the learning rate, for the log.
        checkpoints: of this stage.
        save_seconds: least time between two checkpoints; the last step is always saved.
        log: metrics.jsonl.
        evaluate: after each epoch, params -> (score, metrics to log); the best score wins.

    Returns:
        The last state and the best epoch (None without `evaluate`).

    Raises:
        NonFiniteLossError: stopped at the first step whose loss is not finite.
        Preempted: SIGTERM came; the steps done are saved.
    """
    total_steps = epochs * steps_per_epoch
    best: Best | None = None
    epoch_metrics: dict[str, float] = {}  # summed over the steps of the epoch under way
    found = None
    if checkpoints.steps:
        host_params = sharding.to_host(state.params)
        found = checkpoints.restore({"state": state, "best_params": host_params})
    if found is not None:
        saved, notes = found
        state, epoch_metrics = saved["state"], notes["epoch_metrics"]
        if notes["best_epoch"] is not None:
            best = Best(saved["best_params"], notes["best_epoch"], tuple(notes["best_score"]))
    step = int(state.step)
    log.forget(stage, round_index, after_step=step)

    def save() -> None:
        best_params = best.params if best else sharding.to_host(state.params)
        checkpoints.save(
            step,
            {"state": state, "best_params": best_params},
            {
                "epoch_metrics": epoch_metrics,
                "best_epoch": best.epoch if best else None,
                "best_score": list(best.score) if best else None,
            },
        )

    if step == total_steps:
        return state, best
    source = feed()

    def next_steps(step: int, wanted: int) -> tuple[int, Any]:
        """How many steps the next dispatch has, and their batches; it ends with the epoch."""
        return source.steps(step, min(wanted, steps_per_epoch - step % steps_per_epoch))

    wanted = _MIN_STEPS  # grows with what the clock shows; the first dispatch also compiles
    num_steps, batches = next_steps(step, wanted)
    last_save = time.monotonic()
    with (
        Progress(f"{stage}, round {round_index}", total_steps, step) as progress,
        preemption.deferred() as stop_requested,
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
            _require_finite(history["loss"], stage, first, steps_per_epoch)
            for name, values in history.items():
                for value in values.tolist():  # one by one: the sum must not depend on num_steps
                    epoch_metrics[name] = epoch_metrics.get(name, 0.0) + value
            images_per_second = done * batch_size / seconds
            progress.update(step, history["loss"][-1], images_per_second)
            # What the clock and signals say, all hosts must do alike.
            wanted, stopping, save_is_due = map(
                int,
                sharding.agree(
                    max(_MIN_STEPS, round(done * _DISPATCH_SECONDS / seconds)),
                    stop_requested(),
                    time.monotonic() - last_save >= save_seconds,
                ),
            )

            epoch_ends = step % steps_per_epoch == 0
            save_is_due |= stopping or step == total_steps
            if epoch_ends or save_is_due:
                _require_finite_params(state.params, stage, step)
            if epoch_ends:
                epoch = step // steps_per_epoch
                row = {name: total / steps_per_epoch for name, total in epoch_metrics.items()}
                epoch_metrics = {}
                if evaluate is not None:
                    score, validation = evaluate(state.params)
                    row |= validation
                    if best is None or score > best.score:
                        best = Best(sharding.to_host(state.params), epoch, score)
                row |= {
                    "learning_rate": float(schedule(step - 1)),
                    "images_per_second": images_per_second,
                }
                log.write(stage=stage, round=round_index, epoch=epoch, step=step, **row)
                progress.epoch(epoch, epochs, row)
            if save_is_due:
                save()
                last_save = time.monotonic()
            if stopping:
                break
    return state, best


@jax.jit
def _all_finite(params: PyTree) -> jax.Array:
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(params)]).all()


def _require_finite_params(params: PyTree, stage: str, step: int) -> None:
    """The loss of a step is that before its update: the last update shows in the parameters only.

    Raises:
        NonFiniteLossError: a parameter is NaN or infinite.
    """
    if not _all_finite(params):
        section = stage.split("/")[0]
        raise NonFiniteLossError(
            f"Parameters of {stage} became NaN or infinite by step {step}; stopped. A lower "
            f"config.{section}.learning_rate usually helps. Start in a new workdir then."
        )


def _require_finite(losses: np.ndarray, stage: str, step: int, steps_per_epoch: int) -> None:
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        at = step + int(bad[0])
        section = stage.split("/")[0]
        raise NonFiniteLossError(
            f"The loss of {stage} became {losses[bad[0]]} at step {at + 1} (epoch "
            f"{at // steps_per_epoch + 1}); stopped. The last checkpoint is from before it. A "
            f"lower config.{section}.learning_rate or a longer config.{section}.warmup_epochs "
            "usually helps; with model.dtype='bfloat16', so does 'float32'. Start in a new "
            "workdir then."
        )
