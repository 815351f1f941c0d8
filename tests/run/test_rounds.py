"""Where the images of a round wait: on the devices, or in files."""

import gc
import re
import weakref

import pytest

from egmae_jax import experiment
from egmae_jax.core import memory
from egmae_jax.data.pipeline import Order, Resident, Stream
from tests import tiny


@pytest.mark.parametrize(
    ("gigabytes", "available", "kind", "reason"),
    [
        (-1.0, 20e9, Resident, r"on a device \(30% of its memory\): kept"),
        (-1.0, 10_000, Stream, r"on a device \(30% of its memory\): streamed"),
        (2e-6, 20e9, Stream, r"on a device \(data.resident_gigabytes\): streamed"),
    ],
)
def test_the_memory_decides_where_images_wait_and_the_log_says_so(
    data, cache, tmp_path, monkeypatch, caplog, gigabytes, available, kind, reason
):
    caplog.set_level("INFO", "egmae_jax")
    monkeypatch.setattr(memory, "_free_on_host", lambda: available)
    config = tiny.make_config(data, cache, data__resident_gigabytes=gigabytes)
    run = experiment.Experiment(config, tmp_path).run
    order = Order(len(run.data.indices(0, "train")), 8, (0,))
    assert type(run.data.feed(0, ("train",), order, total_steps=8)) is kind
    assert re.search(reason, caplog.text)


def test_one_training_set_at_a_time_is_on_the_device(data, cache, tmp_path):
    run = experiment.Experiment(tiny.make_config(data, cache), tmp_path).run
    order = Order(20, 8, (0,))
    first = run.data.feed(0, ("train",), order, total_steps=8)._images
    assert run.data.feed(1, ("train",), order, total_steps=8)._images is first
    pixels = weakref.ref(first.pixels)
    del first
    run.data.feed(0, ("train", "validation"), order, total_steps=8)
    gc.collect()
    assert pixels() is None
