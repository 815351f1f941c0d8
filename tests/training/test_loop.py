import os
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egmae_jax.core import rng, sharding
from egmae_jax.core.files import DamagedFileError, read_sealed
from egmae_jax.data.pipeline import Order, Resident
from egmae_jax.run.logs import MetricsLog
from egmae_jax.run.nonfinite import Policy
from egmae_jax.training import checkpoint, loop, nonfinite
from egmae_jax.training.checkpoint import Checkpoints
from egmae_jax.training.state import TrainState
from tests.training.toy import (
    OPTIMIZER,
    fit_step,
    make_images,
    make_plan,
    make_variables,
    read_rows,
    score,
    train,
)


def test_many_steps_in_one_dispatch_equal_steps_one_by_one():
    mesh = sharding.make_mesh()
    images = sharding.replicate(make_images(), mesh)
    order, key = Order(20, 4, (0,)), rng.stage_key(0, "test")
    start = TrainState.create(make_variables(), OPTIMIZER, mesh)

    one_by_one = start
    for step in range(7):
        batch = images.take(order[step])
        one_by_one, _ = jax.jit(fit_step)(one_by_one, batch, jax.random.fold_in(key, step))
    together, history = loop.compile_steps(fit_step, mesh)(
        start, Resident(images, order).steps(0, 7)[1], key, 7
    )
    np.testing.assert_allclose(together.params["w"], one_by_one.params["w"], rtol=1e-6)
    assert int(together.step) == 7
    assert np.count_nonzero(history["loss"]) == 7


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, stop_after):
    whole, best = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_after=stop_after)
    resumed, resumed_best = train(tmp_path / "killed")
    assert np.array_equal(whole.params["w"], resumed.params["w"])
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(resumed)))
    assert np.array_equal(best.variables["params"]["w"], resumed_best.variables["params"]["w"])
    assert (best.epoch, best.score) == (resumed_best.epoch, resumed_best.score)
    assert read_rows(tmp_path / "whole") == read_rows(tmp_path / "killed")


def test_a_complete_stage_is_not_run_again(tmp_path):
    state, best = train(tmp_path)
    before = read_rows(tmp_path)

    def no_images():
        raise AssertionError("there is nothing left to train")

    mesh = sharding.make_mesh()
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        stage = loop.Stage(
            make_plan(make_images(), 4),
            program=loop.compile_steps(fit_step, mesh),
            create=lambda: TrainState.create(make_variables(), OPTIMIZER, mesh),
            feed=no_images,
            schedule=optax.constant_schedule(0.1),
            checkpoints=checkpoints,
            save_seconds=0.0,
            log=MetricsLog(tmp_path / "metrics.jsonl"),
            policy=Policy(tmp_path / "nonfinite"),
            evaluate=score,
        )
        again, again_best = loop.train(stage)
    assert np.array_equal(state.params["w"], again.params["w"])
    assert best.epoch == again_best.epoch
    assert read_rows(tmp_path) == before


def test_the_best_epoch_is_the_one_of_highest_score(tmp_path):
    _, best = train(tmp_path, epochs=6)
    scores = [row["validation_score"] for row in read_rows(tmp_path)]
    assert best.epoch == 1 + int(np.argmax(scores))
    assert best.score == (max(scores),)


def test_the_logged_loss_is_the_mean_over_the_epoch(tmp_path):
    train(tmp_path, epochs=1)
    mesh = sharding.make_mesh()
    plan = make_plan(make_images(), 1)
    resident = Resident(sharding.replicate(make_images(), mesh), plan.order)
    start = TrainState.create(make_variables(), OPTIMIZER, mesh)
    _, history = loop.compile_steps(fit_step, mesh)(start, resident.steps(0, 5)[1], plan.key, 5)
    assert read_rows(tmp_path)[0]["loss"] == pytest.approx(
        np.mean(np.asarray(history["loss"])[:5]), rel=1e-6
    )


# Steps that are not finite


def _bad(culprit, *steps):
    """A step function whose loss or gradient is NaN at some steps, counted from 1."""

    def step(state, batch, key):
        new, metrics = fit_step(state, batch, key)
        bad = jnp.isin(new.step, jnp.array(steps))
        if culprit == "loss":
            metrics = {"loss": jnp.where(bad, jnp.nan, metrics["loss"])}
        else:  # Adam's second moment alone, which no loss will ever show
            break_ = partial(jnp.where, bad, jnp.inf)
            moments = new.opt_state[0]._replace(nu=jax.tree.map(break_, new.opt_state[0].nu))
            new = new.replace(opt_state=(moments, *new.opt_state[1:]))
        return new, metrics

    return step


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folder and last state of a run without a fault."""
    folder = tmp_path_factory.mktemp("unbroken")
    return folder, train(folder)[0]


@pytest.mark.parametrize(
    ("culprit", "bad", "save_seconds"),
    [  # the first step, an epoch's last, within an epoch, the last of all
        ("loss", 1, 0.0),
        ("gradient", 5, 1e9),
        ("loss", 13, 1e9),
        ("gradient", 20, 0.0),
    ],
)
def test_a_step_that_is_not_finite_stops_the_run_there(
    tmp_path, culprit, bad, save_seconds, unbroken
):
    step = _bad(culprit, bad)
    message = rf"The {culprit} of test is not finite.* at step {bad} \(epoch {(bad + 4) // 5}\)"
    with pytest.raises(nonfinite.NonFiniteError, match=message):
        train(tmp_path, step=step, save_seconds=save_seconds)
    record = read_sealed(tmp_path / "nonfinite" / f"round_0_test_step_{bad}.json")
    assert (record["step"], record["not_finite"], record["skipped"]) == (bad, culprit, False)
    assert record["images"] == [f"{i}.png" for i in make_plan(make_images(), 4).order[bad - 1]]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert max(checkpoints.steps) == bad - 1
    # The same call repeats the step, and nothing but the step.
    again = []
    with pytest.raises(nonfinite.NonFiniteError, match=message):
        train(tmp_path, step=lambda *a: again.append(0) or step(*a), save_seconds=save_seconds)
    # Without the fault the state that was saved leads to the end of a run that never had it.
    state, _ = train(tmp_path)
    whole, expected = unbroken
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert read_rows(tmp_path) == read_rows(whole)
    assert not list((tmp_path / "nonfinite").iterdir())


def test_so_many_in_a_row_are_left_out(tmp_path, caplog):
    bad = (3, 8, 9, 20)
    broken = _bad("gradient", *bad)
    with pytest.raises(nonfinite.NonFiniteError, match=r"at step 9 .* after 1 that were skipped"):
        train(tmp_path / "stopped", step=broken, max_skipped=1)
    state, _ = train(tmp_path / "run", step=broken, max_skipped=2)

    def leave_out(state, batch, key):
        new, metrics = fit_step(state, batch, key)
        skip = jnp.isin(new.step, jnp.array(bad))
        kept = jax.tree.map(lambda a, b: jnp.where(skip, a, b), state, new)
        return kept.replace(step=new.step), {"loss": jnp.where(skip, 0.0, metrics["loss"])}

    expected, _ = train(tmp_path / "expected", step=leave_out)
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert int(state.step) == 20
    records = [read_sealed(path) for path in (tmp_path / "run" / "nonfinite").iterdir()]
    assert sorted(row["step"] for row in records if row["skipped"]) == list(bad)
    assert caplog.text.count("skipped; ") >= len(bad)
    for row, all_five in zip(
        read_rows(tmp_path / "run"), read_rows(tmp_path / "expected"), strict=True
    ):
        left_out = row.pop("skipped_steps", 0)
        assert left_out == sum((step - 1) // 5 == row["epoch"] - 1 for step in bad)
        assert row["loss"] == pytest.approx(all_five["loss"] * 5 / (5 - left_out), rel=1e-6)
    with pytest.raises(nonfinite.NonFiniteError, match=r"at step 9 .* after 1 that were skipped"):
        train(tmp_path / "stopped", step=broken, max_skipped=1)  # it remembers
    # A run that was stopped before goes on where more may be skipped, to the same bits.
    resumed, _ = train(tmp_path / "stopped", step=broken, max_skipped=2)
    assert np.array_equal(resumed.params["w"], expected.params["w"])
    assert read_rows(tmp_path / "stopped") == read_rows(tmp_path / "run")
    assert [row["step"] for row in Policy(tmp_path / "run" / "nonfinite").skipped()] == [*bad]


def test_a_device_that_does_not_compute_the_same_twice_stops_the_run(tmp_path, monkeypatch):
    finite = nonfinite.is_finite
    answers = iter([True, False])
    monkeypatch.setattr(nonfinite, "is_finite", lambda *a: next(answers, True) and finite(*a))
    with pytest.raises(nonfinite.NonFiniteError, match="does not compute the same twice"):
        train(tmp_path)
    monkeypatch.undo()
    state, _ = train(tmp_path)
    expected, _ = train(tmp_path / "whole")
    assert np.array_equal(state.params["w"], expected.params["w"])


def test_checkpoints_keep_the_newest_two(tmp_path):
    train(tmp_path)
    steps = sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit())
    assert len(steps) == 2
    assert steps[-1] == 20


# Damaged checkpoints


def _stopped(folder, stop_after=3):
    """Trains until its third checkpoint; returns the newest one's files."""
    with pytest.raises(KeyboardInterrupt):
        train(folder, stop_after=stop_after)
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
    expected, _ = train(tmp_path / "whole")
    newest, files = _stopped(tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for file in files:
            content, name = file.read_bytes(), str(file.relative_to(newest))
            harm(file)
            assert checkpoints._find_damage(int(newest.name)).startswith(f"{name} is ")
            file.write_bytes(content)
        assert checkpoints._find_damage(int(newest.name)) is None
    harm(files[-1])
    state, _ = train(tmp_path / "run")
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert read_rows(tmp_path / "run") == read_rows(tmp_path / "whole")
    assert f"{newest.name} is damaged ({files[-1].relative_to(newest)} is " in caplog.text


def test_damage_stops_where_there_is_no_checkpoint_before(tmp_path):
    alone = tmp_path / "alone"
    _, files = _stopped(alone, stop_after=1)
    _flip(files[0])
    with pytest.raises(DamagedFileError, match="to restart this stage"):
        train(alone)


def test_a_checkpoint_of_another_version_is_refused_and_not_called_damaged(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 99)
        _stopped(tmp_path)
    held = sorted((tmp_path / "checkpoints").rglob("*"))
    with pytest.raises(checkpoint.CheckpointVersionError, match=r"or delete .* to restart it"):
        train(tmp_path)
    assert sorted((tmp_path / "checkpoints").rglob("*")) == held


def test_a_checkpoint_that_a_kill_cut_short_does_not_count(tmp_path, caplog):
    """The record is what is written last; without it all begins anew, or from the one before."""
    expected, _ = train(tmp_path / "whole")
    for stop_after in (1, 3):
        folder = tmp_path / str(stop_after)
        newest, _ = _stopped(folder, stop_after)
        newest.with_name(f"{newest.name}.sha256.json").unlink()
        state, _ = train(folder)
        assert np.array_equal(state.params["w"], expected.params["w"])
        assert "was not finished" in caplog.text


# Memory


def test_memory_stays_flat_over_a_thousand_epochs(tmp_path):
    """Of the process, and of live arrays on the device; checkpoints once a second."""
    seen = []

    def evaluate(variables):
        size = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        seen.append((size, sum(x.nbytes for x in jax.live_arrays())))
        return score(variables)

    train(tmp_path, epochs=1000, save_seconds=1.0, evaluate=evaluate)
    assert len(seen) == 1000
    resident, live = np.array(seen).T
    assert live[20:].max() == live[20:].min()
    # Python and allocators settle during the first epochs.
    assert resident[-100:].mean() - resident[200:300].mean() < 10e6


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((2, 2), np.float32)},
        {"y": np.zeros(4, np.float32)},
        {"x": {"z": np.zeros(4, np.float32)}},
    ],
    ids=str,
)
def test_a_checkpoint_of_other_arrays_is_damaged(tmp_path, other):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": np.arange(4, dtype=np.float32)}, {})
        with pytest.raises(DamagedFileError, match="1 is damaged"):
            checkpoints.restore(other)
