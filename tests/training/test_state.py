"""What does not train stays as it was to the bit, and costs neither gradient nor memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, traverse_util
from ml_collections import FrozenConfigDict

from egmae_jax import models
from egmae_jax.core import platform, sharding
from egmae_jax.data.pipeline import Images
from egmae_jax.models.init import initial_variables
from egmae_jax.run import layer_selection
from egmae_jax.training import finetune, optim
from egmae_jax.training.state import TrainState, count_parameters, merge, partition, restrict
from tests import tiny
from tests.tiny import flatten

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
NETWORKS = (tiny.RESNET, "squeezenet1_1", tiny.MODEL)


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch):
    tiny.register()


def tree():
    """Parameters of two layers, of a norm and of a head."""
    flat = {
        "stem/conv/kernel": np.ones((2, 3)),
        "stem/bn/scale": np.ones(3),
        "stem_2/conv/kernel": np.full((3, 4), 2.0),
        "head/fc/kernel": np.ones((4, 2)),
    }
    return traverse_util.unflatten_dict(flat, sep="/")


# Trees


def test_every_leaf_is_in_one_of_the_parts():
    everything, nothing = partition(tree())
    assert flatten(everything).keys() == flatten(tree()).keys()
    assert nothing == {}
    trained, frozen = partition(tree(), ("stem/",))
    assert flatten(trained).keys() == {"stem/conv/kernel", "stem/bn/scale"}
    assert flatten(frozen).keys() == {"stem_2/conv/kernel", "head/fc/kernel"}


def test_merging_the_parts_gives_the_whole_and_the_last_tree_wins():
    whole = merge(*partition(tree(), ("head/",)))
    assert flatten(whole).keys() == flatten(tree()).keys()
    changed = merge(whole, {"stem": {"bn": {"scale": np.full(3, 7.0)}}})
    assert changed["stem"]["bn"]["scale"].tolist() == [7, 7, 7]
    assert changed["stem"]["conv"]["kernel"].tolist() == [[1, 1, 1], [1, 1, 1]]
    assert whole["stem"]["bn"]["scale"].tolist() == [1, 1, 1]  # what was merged is as before


def test_restrict_takes_the_leaves_of_another_tree():
    trained, _ = partition(tree(), ("stem_2/",))
    assert flatten(restrict(tree(), trained)).keys() == {"stem_2/conv/kernel"}


def test_an_update_moves_what_trains_and_takes_new_statistics():
    optimizer, statistics = optax.sgd(0.5), {"stem": {"bn": {"mean": np.zeros(3)}}}
    variables = {"params": tree(), "batch_stats": statistics}
    before = TrainState.create(variables, optimizer, sharding.make_mesh(), ("head/",))
    gradients = {"head": {"fc": {"kernel": np.full((4, 2), 4.0)}}}
    state = before.update(optimizer, gradients, {"stem": {"bn": {"mean": np.full(3, 0.25)}}})
    assert int(state.step) == 1
    assert state.variables.keys() == {"params", "batch_stats"}
    after = flatten(state.params)
    assert after.keys() == flatten(tree()).keys()
    assert (after.pop("head/fc/kernel") == -1).all()  # 1 - 0.5 * 4
    for path, x in after.items():
        assert np.array_equal(x, flatten(tree())[path]), path
    assert state.batch_stats["stem"]["bn"]["mean"].tolist() == [0.25, 0.25, 0.25]
    kept = before.update(optimizer, gradients)
    assert kept.batch_stats["stem"]["bn"]["mean"].tolist() == [0, 0, 0]


def test_a_network_without_batch_norms_has_parameters_alone():
    state = TrainState.create({"params": tree()}, optax.sgd(0.5), sharding.make_mesh())
    assert state.batch_stats == {}
    assert state.variables.keys() == {"params"}


# Running statistics


def test_a_stock_optimizer_sees_no_statistics():
    variables = initial_variables(models.create("resnet18", 3), 0, IMAGE)
    names = {
        collection: {path.rsplit("/", 1)[-1] for path in flatten(tree)}
        for collection, tree in variables.items()
    }
    assert names == {"params": {"kernel", "scale", "bias"}, "batch_stats": {"mean", "var"}}
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    before = TrainState.create(variables, optimizer, sharding.make_mesh())
    assert jax.tree.structure(before.opt_state[0].mu) == jax.tree.structure(variables["params"])
    gradients = jax.tree.map(jnp.ones_like, before.params)
    state = jax.jit(lambda state: state.update(optimizer, gradients))(before)
    assert not any(map(np.array_equal, *map(jax.tree.leaves, (state.params, before.params))))
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])


def test_statistics_move_in_training_alone_and_only_where_they_are_mutable():
    model = models.create(tiny.RESNET, 3)
    variables = initial_variables(model, 0, IMAGE)
    images = np.random.default_rng(0).standard_normal((4, 32, 32, 3)).astype(np.float32)
    apply = functools.partial(model.apply, variables, images)
    before = flatten(variables["batch_stats"])
    for train in (False, True):
        _, changes = jax.jit(functools.partial(apply, train=train, mutable=["batch_stats"]))()
        assert changes.keys() == {"batch_stats"}
        after = flatten(changes["batch_stats"])
        assert after.keys() == before.keys()
        moved = {path for path, x in after.items() if not np.array_equal(x, before[path])}
        assert moved == (after.keys() if train else set())
    assert apply().shape == (4, 3)
    with pytest.raises(errors.ModifyScopeVariableError):
        apply(train=True)


# Steps


class Setting:
    """A network, some of whose layers train, before its first step."""

    def __init__(self, name, chosen):
        config = tiny.make_config("data", "cache")
        full = models.create(name, 3)
        fresh = initial_variables(full, 0, IMAGE, kernel_init="fan_in", layer_scale=0.1)
        # No scale of zero, as new residual blocks have: nothing would reach what lies before it.
        variables = traverse_util.unflatten_dict(
            {k: np.ones_like(x) if k.endswith("scale") else x for k, x in flatten(fresh).items()},
            sep="/",
        )
        layers = list(full.layers)
        selection = layer_selection.selection(full.layers, [layers[i] for i in chosen(layers)])
        self.layers, self.selection = full.layers, selection
        self.trained = partition(variables["params"], selection.prefixes)[0]
        self.optimizer = optim.adamw(lambda step: 1e-2, self.trained, weight_decay=0.05)
        mesh = sharding.make_mesh()
        self.state = TrainState.create(variables, self.optimizer, mesh, selection.prefixes)
        self.step = functools.partial(
            finetune.finetune_step,
            model=models.create(name, 3, frozen=selection.frozen),
            optimizer=self.optimizer,
            config=FrozenConfigDict(config),
            prefixes=selection.prefixes,
        )
        rng = np.random.default_rng(0)
        self.batch = Images(
            rng.integers(0, 256, (4, 40, 40, 3), np.uint8),
            np.full((4, 2), 40, np.int32),
            np.array([0, 1, 2, 0], np.int32),
        )

    def compile(self):
        """The step, optimised by XLA but not by LLVM, which would take most of the time."""
        options = platform._options() | {"xla_backend_optimization_level": 0}
        program = jax.jit(self.step, compiler_options=options)
        return program.lower(self.state, self.batch, jax.random.key(0)).compile()


CHOICES = {
    "head": lambda layers: [],
    "last": lambda layers: [len(layers) - 1],
    "first": lambda layers: [0],
    "some": lambda layers: [1, len(layers) // 2],
    "all": lambda layers: range(len(layers)),
}


@pytest.mark.parametrize(
    ("name", "choice"), [*((name, "some") for name in NETWORKS), (tiny.MODEL, "head")]
)
def test_frozen_leaves_and_statistics_keep_every_bit_and_the_others_move(name, choice):
    setting = Setting(name, CHOICES[choice])
    program, state, before = setting.compile(), setting.state, flatten(setting.state.variables)
    for step in range(3):
        state, metrics = program(state, setting.batch, jax.random.key(step))
        assert np.isfinite(metrics["loss"])
    after = flatten(state.variables)
    assert after.keys() == before.keys()
    frozen = [p for layer in setting.selection.frozen for p in setting.layers[layer]]
    assert frozen
    moved = {path for path, x in after.items() if not np.array_equal(x, before[path])}
    expected = {x for x in after if not x.partition("/")[2].startswith(tuple(frozen))}
    assert moved == expected
    if name == tiny.RESNET and choice == "some":  # statistics of layers that train are among them
        assert any(path.startswith("batch_stats/") for path in moved)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("choice", ["head", "some"])
def test_the_optimizer_holds_two_moments_of_what_trains_and_no_more(name, choice):
    setting = Setting(name, CHOICES[choice])
    sizes = [leaf.size for leaf in jax.tree.leaves(setting.state.opt_state)]
    trained = jax.tree.leaves(setting.trained)
    assert len(sizes) == 2 * len(trained) + 1  # and the number of steps
    assert sum(sizes) == 2 * count_parameters(setting.trained) + 1


@pytest.mark.essential
@pytest.mark.slow
def test_below_the_lowest_layer_that_trains_no_gradient_is_computed():
    choices = ("head", "last", "first", "all")
    compiled = {choice: Setting(tiny.RESNET, CHOICES[choice]).compile() for choice in choices}
    flops = {choice: program.cost_analysis()["flops"] for choice, program in compiled.items()}
    assert flops["head"] < flops["last"] < flops["first"] < flops["all"]
    assert flops["last"] < 1.15 * flops["head"]
    assert flops["all"] > 1.8 * flops["head"]
