"""The order of training and the arrays that it indexes."""

import types

import jax
import numpy as np
import PIL.Image
import pytest

from egmae_jax.core import sharding
from egmae_jax.data import images, pipeline
from egmae_jax.data.pipeline import Order
from egmae_jax.data.pixels import PixelStatistics
from egmae_jax.data.prepare import Prepared
from egmae_jax.data.samples import BY_TYPE
from tests import torch_reference


def picture(seed, width, height):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)  # no pixel is 0, as the canvas is


def prepared(pictures):
    """What `prepare` returns, of images in memory; their labels count up."""
    count = len(pictures)

    def pixels(index, color):
        return images.to_array(pictures[index].convert("L" if color == "grey" else "RGB"))

    return Prepared(
        name="memory",
        title="",
        citation="",
        classes=tuple(str(i) for i in range(count)),
        files=tuple(f"{i}.png" for i in range(count)),
        labels=np.arange(count) + 100,
        groups=np.arange(count),
        pairs=np.zeros((0, 2), int),
        official=np.array([""] * count),
        sizes=np.array([(image.height, image.width) for image in pictures]),
        modes=np.array(["RGB"] * count),
        descriptors=np.zeros((count, 32, 32), np.uint8),
        pixel_hashes=np.array([str(i) for i in range(count)]),
        sha256=("",) * count,
        pixels=PixelStatistics(
            types=np.array([""] * count),
            bits=np.full(count, 8),
            stored=np.tile([1.0, 255.0], (count, 1)),
            levels=np.full(count, 255),
            greys=np.tile([1, 255], (count, 1)),
        ),
        intensity=BY_TYPE,
        skipped=(),
        records=types.SimpleNamespace(pixels=pixels),
    )


def training_view(pictures, indices, store_size):
    return pipeline.training_view(
        prepared(pictures), indices, color="rgb", resize="shorter_side", store_size=store_size
    )


def nine_images():
    """A view of twelve images, the nine that are trained on, and their order."""
    indices = np.array([1, 2, 3, 4, 5, 7, 8, 9, 11])
    view = training_view([picture(i, 20 + i, 24 - i) for i in range(12)], indices, store_size=64)
    return view, indices, Order(len(indices), 8, (3,))


def stream(order, num_steps):
    """The batches of the first steps, joined."""
    return np.concatenate([order[step] for step in range(num_steps)])


# --- Order -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_examples", "batch_size"), [(10, 5), (10, 4), (7, 3), (13, 1), (5, 5), (3, 8), (1, 4)]
)
def test_each_epoch_has_every_example_exactly_once(num_examples, batch_size):
    epochs = 2 * batch_size  # ends at the end of a batch
    order = Order(num_examples, batch_size, (0,))
    positions = stream(order, epochs * num_examples // batch_size).reshape(epochs, num_examples)
    for epoch in positions:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
    if num_examples > 7:
        assert len({epoch.tobytes() for epoch in positions}) == epochs  # shuffled anew


def test_a_batch_depends_on_seed_and_step_alone():
    walked = Order(23, 8, (7, 5))
    for step in range(1001):
        walked[step]
    for step in (0, 41, 3, 1000, 999):
        np.testing.assert_array_equal(Order(23, 8, (7, 5))[step], walked[step])
    seeds = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (0, 123456789)]
    assert len({stream(Order(40, 8, seed), 5).tobytes() for seed in seeds}) == len(seeds)


def test_a_batch_reaches_over_the_end_of_an_epoch():
    positions = stream(Order(10, 10, (3,)), 4)
    # The stream of examples does not depend on how it is cut.
    np.testing.assert_array_equal(stream(Order(10, 4, (3,)), 10), positions)
    np.testing.assert_array_equal(stream(Order(10, 20, (3,)), 2), positions)


def test_weighted_sampling_has_the_frequencies_of_torchs_sampler():
    """Both against the expected counts, by a chi-squared statistic of 29 degrees of freedom."""
    labels = np.repeat([0, 1, 2], [20, 8, 2])
    weights = 1 / np.bincount(labels)[labels]
    order = Order(30, 8, (3, 4), weights)
    ours = stream(order, 30 * 100)  # 800 epochs
    torch = torch_reference.torch()
    sampler = torch.utils.data.WeightedRandomSampler(weights.tolist(), len(ours), replacement=True)
    torch.manual_seed(0)
    expected = len(ours) * weights / weights.sum()
    for drawn in (ours, np.array(list(sampler))):
        counts = np.bincount(drawn, minlength=30)
        assert ((counts - expected) ** 2 / expected).sum() < 60  # exceeded once in a thousand
    np.testing.assert_allclose(np.bincount(labels[ours]) / len(ours), 1 / 3, atol=0.01)
    for step in (0, 2999, 17):
        np.testing.assert_array_equal(Order(30, 8, (3, 4), weights)[step], order[step])
    assert stream(Order(30, 8, (3, 5), weights), 9).tobytes() != ours[:72].tobytes()


def test_an_order_may_count_some_of_the_images_on_the_device():
    rows = np.array([2, 3, 7, 8])
    pixels = np.zeros((9, 1, 1, 3), np.uint8)
    held = pipeline.Images(pixels, np.ones((9, 2), np.int32), np.arange(9, dtype=np.int32))
    order = Order(4, 3, (0,))
    count, steps = pipeline.Resident(held, order, rows).steps(5, 2)
    assert count == 2
    for i in range(count):
        np.testing.assert_array_equal(held.take(steps.indices[i]).labels, rows[order[5 + i]])


# --- loading -----------------------------------------------------------------------------------


def load_training(pictures, indices, store_size):
    return pipeline.load(training_view(pictures, indices, store_size), indices)


SIZES = [(20, 30), (44, 16), (10, 10), (36, 36), (31, 17)]  # width, height


def test_training_canvas_holds_each_image_in_its_upper_left_corner():
    pictures = [picture(i, *size) for i, size in enumerate(SIZES)]
    loaded = load_training(pictures, np.arange(5), store_size=64)
    large = load_training([*pictures, picture(5, 100, 80)], np.array([5, 1]), store_size=40)
    np.testing.assert_array_equal(large.labels, [105, 101])  # those asked for, in that order
    np.testing.assert_array_equal(large.sizes, [(40, 50), (16, 44)])
    assert loaded.pixels.shape == (5, 36, 44, 3)  # the largest height, the largest width
    assert loaded.pixels.dtype == np.uint8
    assert loaded.sizes.dtype == np.int32
    assert loaded.labels.dtype == np.int32
    np.testing.assert_array_equal(loaded.sizes, [(h, w) for w, h in SIZES])
    np.testing.assert_array_equal(loaded.labels, [100, 101, 102, 103, 104])
    assert len(loaded) == 5
    for canvas, image, (width, height) in zip(loaded.pixels, pictures, SIZES, strict=True):
        np.testing.assert_array_equal(canvas[:height, :width], np.asarray(image))
        assert (canvas[height:] == 0).all()
        assert (canvas[:, width:] == 0).all()


@pytest.mark.parametrize("resized", [None, 36])
@pytest.mark.parametrize("resize", images.RESIZE_MODES)
def test_evaluation_images_are_squares_as_evaluated(resize, resized):
    sizes = [(32, 32), *SIZES]  # the first has the size of the crop before it is resized
    pictures = [picture(i, *size) for i, size in enumerate(sizes)]
    view = pipeline.evaluation_view(
        prepared(pictures), color="rgb", resize=resize, image_size=32, resized=resized
    )
    loaded = pipeline.load(view, np.arange(len(sizes)))
    assert loaded.pixels.shape == (len(sizes), 32, 32, 3)
    np.testing.assert_array_equal(loaded.sizes, 32)
    for pixels, image in zip(loaded.pixels, pictures, strict=True):
        view = images.to_array(images.evaluation_view(image, resize, 32, resized))
        np.testing.assert_array_equal(pixels, view)


# --- feeding -----------------------------------------------------------------------------------


@pytest.fixture
def feeds():
    """A resident set and a stream of the same nine images in the same order, and the mesh."""
    view, indices, order = nine_images()
    mesh = sharding.make_mesh()
    resident = pipeline.Resident(sharding.replicate(pipeline.load(view, indices), mesh), order)
    return resident, pipeline.Stream(view, indices, order, 20, mesh), mesh


def batches(feed, first, count, mesh):
    program = jax.jit(lambda steps, i: steps.batch(i, mesh))
    made, stop = [], first + count
    while first < stop:
        number, steps = feed.steps(first, stop - first)
        made += [jax.tree.map(np.asarray, program(steps, i)) for i in range(number)]
        first += number
    return made


def assert_equal_batches(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_stream_gives_the_batches_of_the_resident_set(feeds):
    resident, stream, mesh = feeds
    first = 0
    for count in (1, 3, 2, 5):  # as the clock may choose them
        ours = batches(stream, first, count, mesh)
        assert_equal_batches(ours, batches(resident, first, count, mesh))
        first += count
    for first in (13, 2, 17):  # it starts anywhere
        assert_equal_batches(batches(stream, first, 3, mesh), batches(resident, first, 3, mesh))


@pytest.mark.parametrize("fitting", [0.5, 1, 3.5])  # batches of a block
def test_blocks_of_a_stream_have_one_shape_and_bounded_memory(feeds, monkeypatch, fitting):
    resident, _, mesh = feeds
    view, indices, order = nine_images()
    monkeypatch.setattr(pipeline, "_BLOCK_BYTES", fitting * view.nbytes(order.batch_size))
    stream = pipeline.Stream(view, indices, order, 20, mesh)
    first = 0
    while first < 20:
        count, steps = stream.steps(first, 5)
        assert 1 <= count <= max(1, fitting)
        assert steps.images.pixels.shape[:2] == (max(1, int(fitting)), order.batch_size)
        first += count
    for first, count in ((4, 7), (11, 9), (2, 3)):
        assert_equal_batches(
            batches(stream, first, count, mesh), batches(resident, first, count, mesh)
        )


def test_images_are_decoded_once_where_they_fit_into_the_store():
    view, indices, order = nine_images()
    decoded = []
    pixels = view.prepared.records.pixels
    view.prepared.records.pixels = lambda i, color: decoded.append(i) or pixels(i, color)
    mesh = sharding.make_mesh()
    plain = batches(pipeline.Stream(view, indices, order, 20, mesh), 0, 6, mesh)
    assert len(decoded) >= 6 * 8
    decoded.clear()
    everything = pipeline.HostStore(1e9)
    for _ in range(2):  # as two branches would
        kept = pipeline.Stream(view, indices, order, 20, mesh, everything)
        assert_equal_batches(batches(kept, 0, 6, mesh), plain)
    assert sorted(set(decoded)) == indices.tolist()
    assert len(decoded) <= len(indices) + 8  # two threads may decode one image at a time
    decoded.clear()
    some = pipeline.HostStore(4 * 24 * 31 * 3)
    assert_equal_batches(
        batches(pipeline.Stream(view, indices, order, 20, mesh, some), 0, 6, mesh), plain
    )
    assert len(decoded) > len(indices)  # the others each time
    assert sum(image.nbytes for image in some._images.values()) <= 4 * 24 * 31 * 3


def test_grey_images_have_one_channel():
    view, indices, _ = nine_images()
    coloured, grey = view.load(indices[:3]), view._replace(color="grey")
    assert grey.load(indices[:3]).pixels.shape == (*coloured.pixels.shape[:3], 1)
    assert grey.nbytes(3) * 3 == view.nbytes(3)


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 16])
def test_evaluation_gives_every_image_once(batch_size, is_resident):
    pictures = [picture(i, 40, 30) for i in range(11)]
    view = pipeline.evaluation_view(prepared(pictures), color="rgb", resize="squash", image_size=32)
    indices = np.array([0, 2, 3, 5, 6, 7, 8, 9, 10])
    whole = view.load(indices)
    images_ = pipeline.Evaluation(view, indices, sharding.make_mesh(), resident=is_resident)
    assert len(images_) == 9
    seen, pixels = [], []
    for loaded, positions, valid in images_.batches(batch_size):
        assert positions.shape == valid.shape == (batch_size,)
        assert (positions.dtype, valid.dtype) == (np.int32, np.float32)
        batch = loaded.take(positions)
        seen += np.asarray(batch.labels)[valid == 1].tolist()
        pixels += list(np.asarray(batch.pixels)[valid == 1])
    assert seen == whole.labels.tolist()
    np.testing.assert_array_equal(pixels, whole.pixels)
