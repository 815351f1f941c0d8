"""The order of training and the arrays that it indexes."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from egmae_jax.core import sharding
from egmae_jax.data import images, pipeline
from egmae_jax.data.pipeline import Order
from tests import feeding, tiny
from tests.feeding import picture, prepared, training_view


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


@pytest.mark.parametrize("resize", images.RESIZE_MODES)
def test_evaluation_images_are_squares_as_evaluated(resize):
    pictures = [picture(i, *size) for i, size in enumerate(SIZES)]
    view = pipeline.evaluation_view(prepared(pictures), color="rgb", resize=resize, image_size=32)
    loaded = pipeline.load(view, np.arange(5))
    assert loaded.pixels.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(loaded.sizes, 32)
    for pixels, image in zip(loaded.pixels, pictures, strict=True):
        view = images.to_array(images.evaluation_view(image, resize, 32))
        np.testing.assert_array_equal(pixels, view)


# --- feeding -----------------------------------------------------------------------------------


@pytest.fixture
def feeds():
    """A resident set and a stream of the same nine images in the same order, and the mesh."""
    view, indices, order = feeding.nine_images()
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
    view, indices, order = feeding.nine_images()
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


@pytest.mark.slow
def test_two_hosts_of_two_devices_share_the_batches_of_one(tmp_path, feeds):
    """Each reads the rows its devices train on and no others."""
    port = str(feeding.free_port())
    environment = tiny.environment(XLA_FLAGS="--xla_force_host_platform_device_count=2")
    hosts = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.feeding", tmp_path, str(process), "2", port],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    errors = [host.communicate(timeout=120)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], errors
    received = [np.load(tmp_path / f"{process}.npz") for process in (0, 1)]
    resident, _, mesh = feeds
    indices, order = feeding.nine_images()[1:]
    for first, count in feeding.WINDOWS:
        for step, batch in enumerate(batches(resident, first, count, mesh), first):
            for name, whole in batch._asdict().items():
                for row in range(0, 8, 2):
                    shard = received[row // 4][f"{step} {name} {row}"]
                    np.testing.assert_array_equal(shard, whole[row : row + 2])
    for process, host in enumerate(received):
        rows = slice(4 * process, 4 * process + 4)
        steps = range(9)  # it may have read ahead over those that were passed over
        assert set(host["decoded"]) <= {i for step in steps for i in indices[order[step][rows]]}
        assert len(host["decoded"]) <= 4 * (len(steps) + 2)


def test_images_are_decoded_once_where_they_fit_into_the_store():
    view, indices, order = feeding.nine_images()
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
    view, indices, _ = feeding.nine_images()
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
