"""Entropies of layers against numpy, and what is selected by them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from egmae_jax import models
from egmae_jax.core.files import DamagedFileError, write_sealed
from egmae_jax.models.init import abstract_variables
from egmae_jax.models.layers import tap
from egmae_jax.models.model import Model
from egmae_jax.run import layer_selection
from egmae_jax.run.layer_selection import layer_entropies
from egmae_jax.training.state import EVERYTHING, partition
from tests.run.histograms import TOLERANCE, in_batches, numpy_entropies

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


class Seen(Model):
    """A network whose only layer gives the images themselves: any number of channels."""

    layers = {"seen": ("seen/",)}  # noqa: RUF012

    @nn.compact
    def __call__(self, images, *, train=False):
        return tap(self, images, "seen")


def entropy(values, size=4):
    """The mean over channels."""
    return layer_entropies(Seen(num_classes=2), {}, in_batches(values, size))["seen"]


def draw(kind, shape, rng):
    """Outputs of layers, those that make histograms hard among them."""
    normal = rng.standard_normal(shape)
    growing = np.arange(1, shape[0] + 1).reshape(-1, 1, 1, 1)
    values = {
        "normal": normal,
        "uniform": rng.uniform(-3, 5, shape),
        "relu": np.maximum(normal, 0),
        "heavy tails": rng.standard_t(3, shape),
        "far from zero": 1000 + normal,
        "far below zero": -1000 + normal,
        "tiny": 1e-20 * normal,
        "huge": 1e20 * normal,
        "few values": np.round(normal),
        "wider with every image": normal * 3.0**growing,
        "moving away": normal + 40 * growing,
        "moving down": normal - 40 * growing,
    }
    return values[kind].astype(np.float32)


KINDS = (
    *("normal", "uniform", "relu", "heavy tails", "far from zero", "far below zero", "tiny"),
    *("huge", "few values", "wider with every image", "moving away", "moving down"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_entropies_are_those_of_numpys_histograms(kind):
    values = draw(kind, (10, 16, 16, 3), np.random.default_rng(0))
    expected = numpy_entropies(values).mean()
    assert expected > 0.3
    assert entropy(values) == pytest.approx(expected, abs=TOLERANCE)


def test_channels_that_are_dead_or_constant_have_no_entropy():
    values = np.zeros((6, 8, 8, 4), np.float32)
    values[..., 1] = 12345.678
    values[..., 2] = -1e-30
    values[4:, ..., 3] = 1.0  # a third: two values
    third = -(math.log(1 / 3) / 3 + 2 * math.log(2 / 3) / 3)
    assert entropy(values[..., :3]) == 0.0
    assert entropy(values) == pytest.approx(third / 4, abs=1e-6)


def test_a_channel_that_wakes_up_late_is_counted_from_the_start():
    values = np.zeros((8, 8, 8, 2), np.float32)
    values[7, ..., 0] = np.linspace(-700, 300, 64).reshape(8, 8)
    values[7, ..., 1] = 1e-25
    assert entropy(values, 2) == pytest.approx(numpy_entropies(values).mean(), abs=1e-3)


def test_the_most_is_the_logarithm_of_the_number_of_bins():
    values = np.linspace(0, 1, 8 * 64 * 64, dtype=np.float32).reshape(8, 64, 64, 1)
    assert entropy(values) == pytest.approx(math.log(256), abs=TOLERANCE)


@pytest.mark.parametrize("kind", ["wider with every image", "moving away", "relu"])
def test_neither_order_nor_batches_nor_padding_change_anything(kind):
    rng = np.random.default_rng(1)
    values = draw(kind, (9, 12, 12, 4), rng)
    expected = entropy(values, 9)
    for size in (1, 2, 4, 7, 16):
        assert entropy(values, size) == pytest.approx(expected, abs=1e-7), size
    for _ in range(2):
        assert entropy(rng.permutation(values), 2) == pytest.approx(expected, abs=1e-7)


def test_images_are_seen_once_and_none_is_an_error():
    seen = []

    def batches():
        for number, batch in enumerate(in_batches(np.ones((6, 4, 4, 1), np.float32), 2)):
            seen.append(number)
            yield batch

    layer_entropies(
        Seen(num_classes=2), {}, batches()
    )  # a generator: a second pass would find nothing
    assert seen == [0, 1, 2]
    with pytest.raises(ValueError, match="at least one image"):
        layer_entropies(Seen(num_classes=2), {}, iter(()))


# Selection


LAYERS = {"a": ("a/",), "b": ("b/", "b_norm/"), "c": ("c/",)}
ENTROPIES = {"a": 3.0, "b": 1.0, "c": 2.0}


def toy_params():
    """100 parameters: 10 of the head, 20, 30 and 40 of the layers."""
    return {
        "a": {"kernel": np.zeros((4, 5))},
        "b": {"kernel": np.zeros(20)},
        "b_norm": {"scale": np.zeros(10)},
        "c": {"kernel": np.zeros((5, 8))},
        "head": {"fc": {"kernel": np.zeros((2, 5))}},
    }


def test_the_size_of_a_layer_is_its_kernels_and_its_norms():
    assert layer_selection.sizes(LAYERS, toy_params()) == {"a": 20, "b": 30, "c": 40}


def test_a_selection_names_the_head_the_fusion_and_the_chosen_layers():
    selection = layer_selection.selection(LAYERS, ["b"])
    assert selection.frozen == {"a", "c"}
    assert set(selection.prefixes) == {"b/", "b_norm/", "head/", "fusion/"}
    # In whatever order they were chosen: one compiled program serves them.
    assert layer_selection.selection(LAYERS, ["c", "a"]) == layer_selection.selection(
        LAYERS, ["a", "c"]
    )
    everything = layer_selection.selection(LAYERS, ["c", "b", "a"])
    assert everything == (EVERYTHING, frozenset())


def test_the_fusion_of_an_asff_trains_with_its_head():
    model = models.create("asff_resnet18", 3)
    params = abstract_variables(model, IMAGE)["params"]
    trained = partition(params, layer_selection.selection(model.layers, []).prefixes)[0]
    assert trained.keys() == {"fusion", "head"}


def test_the_report_holds_every_layer_and_what_trains():
    report = layer_selection.make_report("low_entropy", LAYERS, toy_params(), ["b"], ENTROPIES)
    assert report["trainable"] == "low_entropy"
    assert (report["trainable_parameters"], report["parameters"]) == (10 + 30, 100)
    assert [row["layer"] for row in report["layers"]] == ["a", "b", "c"]
    assert report["layers"][1] == {"layer": "b", "parameters": 30, "entropy": 1.0, "trains": True}
    assert not report["layers"][2]["trains"]
    without = layer_selection.make_report("all", LAYERS, toy_params(), list(LAYERS), None)
    assert without["trainable_parameters"] == without["parameters"] == 100
    assert {row["entropy"] for row in without["layers"]} == {None}


@pytest.mark.parametrize("layers", [None, [{"layer": x, "trains": True} for x in "abc"]])
def test_layers_json_decides_for_every_layer_or_is_damaged(file, layers):
    write_sealed(file, {"layers": layers})
    with pytest.raises(DamagedFileError, match=r"file\.x is damaged"):
        layer_selection.read_report(file, ["a", "b"])
