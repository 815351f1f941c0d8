"""A finished run that the tests of this folder share."""

import shutil

import pytest

from egmae_jax import experiment
from tests import tiny


@pytest.fixture(scope="session")
def moved(tmp_path_factory):
    """A finished run that was moved, and its images, which are not where it found them either."""
    root = tmp_path_factory.mktemp("made")
    data = tiny.make_data(root / "data")
    config = tiny.make_config(data, root / "cache", fusion__kind="weighted", evaluation__resize=37)
    experiment.run(config, root / "run")
    there = tmp_path_factory.mktemp("elsewhere")
    shutil.move(root / "run", there / "run")
    shutil.move(data, there / "images")
    shutil.rmtree(root)
    return there / "run", there / "images"
