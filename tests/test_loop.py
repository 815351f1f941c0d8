import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egmae_jax import loop, preemption, rng, sharding
from egmae_jax.checkpoint import Checkpoints
from egmae_jax.data.pipeline import Images, Order, Resident
from egmae_jax.files import DamagedFileError
from egmae_jax.metrics_log import MetricsLog

_OPTIMIZER = optax.adam(0.1)


def _step(state, batch, key):
    """A linear fit of labels from pixels, with noise from the key so that randomness matters."""
    x = batch.pixels.reshape(len(batch), -1).astype(jnp.float32) / 255
    x = x + 0.1 * jax.random.normal(key, x.shape)

    def loss_fn(params):
        return jnp.square(x @ params["w"] - batch.labels).mean()

    loss, gradients = jax.value_and_grad(loss_fn)(state.params)
    return state.update(_OPTIMIZER, gradients), {"loss": loss}


def _images(count=20):
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return Images(pixels, np.full((count, 2), 2), (pixels[:, 0, 0, 0] // 128).astype(np.int32))


def _evaluate(params):
    score = -(float(jnp.abs(params["w"]).sum() - 1.0) ** 2)
    return (score,), {"validation_score": score}


def _train(folder, *, epochs=4, step=_step, images=None, stop_after=None, save_seconds=0.0):
    """Trains; `stop_after` checkpoints it dies as a killed process would, leaving what it left."""
    images = images or _images()
    mesh = sharding.make_mesh()
    params = {"w": np.zeros(12, np.float32)}
    log = MetricsLog(folder / "metrics.jsonl")
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if stop_after is not None:
            save, saved = checkpoints.save, []

            def counted(*args):
                save(*args)
                saved.append(args[0])
                if len(saved) == stop_after:
                    raise KeyboardInterrupt

            checkpoints.save = counted
        return loop.train(
            stage="test",
            round_index=0,
            program=loop.compile_steps(step, mesh),
            state=loop.TrainState.create(params, _OPTIMIZER, mesh),
            feed=lambda: Resident(sharding.replicate(images, mesh), Order(len(images), 4, (0,))),
            batch_size=4,
            key=rng.stage_key(0, "test"),
            epochs=epochs,
            steps_per_epoch=5,
            schedule=optax.constant_schedule(0.1),
            checkpoints=checkpoints,
            save_seconds=save_seconds,
            log=log,
            evaluate=_evaluate,
        )


def _rows(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "images_per_second"} for x in lines]


_CREATE = """
import jax, numpy, optax
from egmae_jax import loop, sharding
mesh = sharding.make_mesh()
state = loop.TrainState.create({"w": numpy.ones(3, numpy.float32)}, optax.adam(0.1), mesh)
for leaf in jax.tree.leaves(state):
    print(len(leaf.sharding.device_set), leaf.is_fully_replicated)
"""


def test_a_new_state_is_whole_on_every_device():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", _CREATE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["8 True"] * 5  # step, w, Adam's count, mu and nu


def test_many_steps_in_one_dispatch_equal_steps_one_by_one():
    mesh = sharding.make_mesh()
    images = sharding.replicate(_images(), mesh)
    order, key = Order(20, 4, (0,)), rng.stage_key(0, "test")
    start = loop.TrainState.create({"w": np.zeros(12, np.float32)}, _OPTIMIZER, mesh)

    one_by_one = start
    for step in range(7):
        batch = images.take(order[step])
        one_by_one, _ = jax.jit(_step)(one_by_one, batch, jax.random.fold_in(key, step))
    together, history = loop.compile_steps(_step, mesh)(
        start, Resident(images, order).steps(0, 7)[1], key, 7
    )
    np.testing.assert_allclose(together.params["w"], one_by_one.params["w"], rtol=1e-6)
    assert int(together.step) == 7
    assert np.count_nonzero(history["loss"]) == 7


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, stop_after):
    whole, best = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", stop_after=stop_after)
    resumed, resumed_best = _train(tmp_path / "killed")
    assert np.array_equal(whole.params["w"], resumed.params["w"])
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(resumed)))
    assert np.array_equal(best.params["w"], resumed_best.params["w"])
    assert (best.epoch, best.score) == (resumed_best.epoch, resumed_best.score)
    assert _rows(tmp_path / "whole") == _rows(tmp_path / "killed")


def test_a_complete_stage_is_not_run_again(tmp_path):
    state, best = _train(tmp_path)
    before = _rows(tmp_path)

    def no_images():
        raise AssertionError("there is nothing left to train")

    mesh = sharding.make_mesh()
    params = {"w": np.zeros(12, np.float32)}
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        again, again_best = loop.train(
            stage="test",
            round_index=0,
            program=loop.compile_steps(_step, mesh),
            state=loop.TrainState.create(params, _OPTIMIZER, mesh),
            feed=no_images,
            batch_size=4,
            key=rng.stage_key(0, "test"),
            epochs=4,
            steps_per_epoch=5,
            schedule=optax.constant_schedule(0.1),
            checkpoints=checkpoints,
            save_seconds=0.0,
            log=MetricsLog(tmp_path / "metrics.jsonl"),
            evaluate=_evaluate,
        )
    assert np.array_equal(state.params["w"], again.params["w"])
    assert best.epoch == again_best.epoch
    assert _rows(tmp_path) == before


def test_the_best_epoch_is_the_one_of_highest_score(tmp_path):
    _, best = _train(tmp_path, epochs=6)
    scores = [row["validation_score"] for row in _rows(tmp_path)]
    assert best.epoch == 1 + int(np.argmax(scores))
    assert best.score == (max(scores),)


def test_the_logged_loss_is_the_mean_over_the_epoch(tmp_path):
    _train(tmp_path, epochs=1)
    mesh = sharding.make_mesh()
    resident = Resident(sharding.replicate(_images(), mesh), Order(20, 4, (0,)))
    start = loop.TrainState.create({"w": np.zeros(12, np.float32)}, _OPTIMIZER, mesh)
    _, history = loop.compile_steps(_step, mesh)(
        start, resident.steps(0, 5)[1], rng.stage_key(0, "test"), 5
    )
    assert _rows(tmp_path)[0]["loss"] == pytest.approx(
        np.mean(np.asarray(history["loss"])[:5]), rel=1e-6
    )


def test_a_loss_that_is_not_finite_stops_at_its_step(tmp_path):
    def diverge(state, batch, key):
        state, metrics = _step(state, batch, key)
        return state, {"loss": jnp.where(state.step > 12, jnp.nan, metrics["loss"])}

    with pytest.raises(loop.NonFiniteLossError, match=r"became nan at step 13 \(epoch 3\)"):
        _train(tmp_path, step=diverge)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert max(checkpoints.steps) <= 12


@pytest.mark.parametrize(
    ("broken_step", "message"),
    [
        (1, "became nan at step 2"),  # the next step of the same dispatch shows it
        (2, "Parameters of test"),  # the last of a dispatch
        (5, "Parameters of test"),  # the last of the epoch
    ],
)
def test_an_update_that_breaks_the_parameters_is_never_saved(tmp_path, broken_step, message):
    def break_one(state, batch, key):
        new, metrics = _step(state, batch, key)
        w = jnp.where(new.step == broken_step, jnp.inf, new.params["w"])
        return new.replace(params={"w": w}), metrics

    with pytest.raises(loop.NonFiniteLossError, match=message):
        _train(tmp_path, step=break_one, epochs=1, save_seconds=0.0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert max(checkpoints.steps, default=0) < broken_step


def test_checkpoints_keep_the_newest_two(tmp_path):
    _train(tmp_path)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) == 2
    assert steps[-1] == 20


# Damaged checkpoints


def _stopped(folder, stop_after=3):
    """Trains until its third checkpoint; returns the newest one's files."""
    with pytest.raises(KeyboardInterrupt):
        _train(folder, stop_after=stop_after)
    newest = max(
        (p for p in (folder / "checkpoints").iterdir() if p.name.isdigit()),
        key=lambda p: int(p.name),
    )
    return newest, sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM = {
    "a flipped bit": _flip,
    "the end cut off": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a missing file": lambda path: path.unlink(),
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM.keys())
def test_a_damaged_checkpoint_is_named_and_the_one_before_leads_to_the_same_end(
    tmp_path, harm, caplog
):
    expected, _ = _train(tmp_path / "whole")
    newest, files = _stopped(tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for file in files:
            content, name = file.read_bytes(), str(file.relative_to(newest))
            harm(file)
            assert checkpoints._damage(int(newest.name)).startswith(f"{name} is ")
            file.write_bytes(content)
        assert checkpoints._damage(int(newest.name)) is None
    harm(files[-1])
    state, _ = _train(tmp_path / "run")
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert _rows(tmp_path / "run") == _rows(tmp_path / "whole")
    assert f"{newest.name} is damaged ({files[-1].relative_to(newest)} is " in caplog.text


def test_damage_stops_where_the_one_before_is_not_allowed_or_not_there(tmp_path):
    newest, files = _stopped(tmp_path)
    _flip(files[0])
    with (
        Checkpoints(tmp_path / "checkpoints", on_damage="raise") as checkpoints,
        pytest.raises(DamagedFileError, match=r"checkpoint\.on_damage='previous' the one of step"),
    ):
        checkpoints.restore({})
    assert newest.exists()
    alone = tmp_path / "alone"
    _, files = _stopped(alone, stop_after=1)
    _flip(files[0])
    with pytest.raises(DamagedFileError, match="to begin this stage anew"):
        _train(alone)


def test_a_checkpoint_that_a_kill_cut_short_does_not_count(tmp_path, caplog):
    """The record is what is written last; without it all begins anew, or from the one before."""
    expected, _ = _train(tmp_path / "whole")
    for stop_after in (1, 3):
        folder = tmp_path / str(stop_after)
        newest, _ = _stopped(folder, stop_after)
        newest.with_name(f"{newest.name}.sha256.json").unlink()
        state, _ = _train(folder)
        assert np.array_equal(state.params["w"], expected.params["w"])
        assert "was not finished" in caplog.text


# SIGTERM


@pytest.fixture
def preemptible(monkeypatch):
    """SIGTERM as main.py has it."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(preemption, "_requested", False)
    preemption.install()
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_saves_the_steps_done_and_the_same_call_goes_on(tmp_path, preemptible, monkeypatch):
    expected, _ = _train(tmp_path / "whole")
    evaluate = _evaluate

    def evaluate_and_ask(params):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(params)

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "_evaluate", evaluate_and_ask)
        with pytest.raises(preemption.Preempted):
            _train(tmp_path / "run", save_seconds=1e9)  # no other checkpoint is due
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (step,) = checkpoints.steps
        assert 5 <= step < 20
    preemption._requested = False
    state, _ = _train(tmp_path / "run")
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert _rows(tmp_path / "run") == _rows(tmp_path / "whole")


def test_sigterm_outside_of_training_ends_what_is_under_way(preemptible):
    with pytest.raises(preemption.Preempted):
        os.kill(os.getpid(), signal.SIGTERM)
