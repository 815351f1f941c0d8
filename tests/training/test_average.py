"""The moving average of the weights against timm's, and training that ends early."""

import jax
import numpy as np
import optax
import pytest
from flax import traverse_util

from egmae_jax.core import sharding
from egmae_jax.training.state import TrainState
from tests import torch_reference
from tests.training.toy import fit_step, read_rows, score, train

DECAY = 0.9


def test_the_average_is_timms():
    torch, timm = torch_reference.torch(), torch_reference.timm()

    class Average(timm.utils.ModelEmaV3):
        def get_decay(self, step=None):
            return min(DECAY, (1 + step) / (10 + step))

    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = Average(theirs, decay=DECAY)
    names = ("0.weight", "0.bias", "1.running_mean", "1.running_var")

    def params_of(module):
        return {name: module.state_dict()[name].numpy().copy() for name in names}

    def split(values):
        return {
            "params": {name: values[name] for name in names[:2]},
            "batch_stats": {name: values[name] for name in names[2:]},
        }

    optimizer = optax.sgd(1.0)
    state = TrainState.create(
        split(params_of(theirs)), optimizer, sharding.make_mesh(), averages=True
    )
    update = jax.jit(lambda state, g, s: state.update(optimizer, g, s, ema_decay=DECAY))
    rng = np.random.default_rng(0)
    for step in range(1, 120):
        before = split(params_of(theirs))
        with torch.no_grad():
            for tensor in theirs.state_dict().values():
                if tensor.is_floating_point():
                    noise = rng.standard_normal(tuple(tensor.shape)).astype(np.float32)
                    tensor.add_(torch.from_numpy(noise))
        average.update(theirs, step=step)
        after = split(params_of(theirs))
        gradients = jax.tree.map(np.subtract, before["params"], after["params"])
        state = update(state, gradients, after["batch_stats"])
        if step in (1, 10, 119):
            expected, ours = split(params_of(average.module)), state.averaged_variables
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-5)
            moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ours, after)
            assert min(jax.tree.leaves(moved)) > 0.01


def test_frozen_parameters_have_no_average_but_are_part_of_the_averaged_network():
    params = {"head": {"w": np.ones(2, np.float32)}, "stem": {"w": np.ones(3, np.float32)}}
    optimizer = optax.sgd(0.1)
    state = TrainState.create(
        {"params": params}, optimizer, sharding.make_mesh(), ("head/",), averages=True
    )
    assert list(state.average["params"]) == ["head"]
    state = state.update(optimizer, {"head": {"w": np.ones(2, np.float32)}}, ema_decay=0.5)
    averaged = traverse_util.flatten_dict(state.averaged_variables, sep="/")
    decay = 2 / 11  # of step 1
    np.testing.assert_allclose(averaged["params/head/w"], decay * 1 + (1 - decay) * 0.9)
    np.testing.assert_array_equal(averaged["params/stem/w"], 1)


# --- In the loop ----------------------------------------------------------------------------------


def test_the_average_is_validated_selects_the_epoch_and_is_kept(tmp_path):
    seen = []

    def evaluate(variables):
        seen.append(np.asarray(variables["params"]["w"]))
        return score(variables)

    state, best = train(tmp_path, step=averaging_step, averages=True, evaluate=evaluate)
    rows = read_rows(tmp_path)
    assert len(seen) == 2 * len(rows)  # the weights, then the average
    scores = [row["ema_validation_score"] for row in rows]
    assert best.epoch == 1 + int(np.argmax(scores))
    assert best.score == (max(scores),)
    kept = best.variables["params"]["w"]
    np.testing.assert_array_equal(kept, seen[2 * best.epoch - 1])
    assert scores != [row["validation_score"] for row in rows]
    assert not np.array_equal(state.params["w"], state.average["params"]["w"])


def averaging_step(state, batch, key):
    new, metrics = fit_step(state.replace(average=None), batch, key)
    average = optax.incremental_update(
        {"params": new.params}, {"params": state.average["params"]}, 0.3
    )
    return new.replace(average={**average, "batch_stats": {}}), metrics


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_resumed_run_ends_in_the_same_average_and_at_the_same_epoch(tmp_path, stop_after):
    options = {"step": averaging_step, "averages": True, "patience": 2, "epochs": 30}
    whole, best = train(tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", stop_after=stop_after, **options)
    resumed, resumed_best = train(tmp_path / "killed", **options)
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(resumed)))
    assert np.array_equal(best.variables["params"]["w"], resumed_best.variables["params"]["w"])
    assert read_rows(tmp_path / "whole") == read_rows(tmp_path / "killed")


SCORES = (1.0, 3.0, 2.0, 3.0, 2.5, 9.0)  # an equal score is no better one


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (3, 5), (4, 6)])
def test_training_ends_after_some_epochs_without_a_better_score(tmp_path, patience, epochs):
    def evaluate(_):
        value = SCORES[len(read_rows(tmp_path)) if (tmp_path / "metrics.jsonl").exists() else 0]
        return (value,), {"validation_score": value}

    state, best = train(tmp_path, epochs=6, patience=patience, evaluate=evaluate)
    assert [row["validation_score"] for row in read_rows(tmp_path)] == list(SCORES[:epochs])
    assert int(state.step) == 5 * epochs
    assert best.score == (max(SCORES[:epochs]),)
    again, _ = train(tmp_path, epochs=6, patience=patience, evaluate=None)
    assert int(again.step) == 5 * epochs
