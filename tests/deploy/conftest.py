"""A finished run that the tests of this folder share."""

import json
import shutil

import pytest

from egmae_jax import experiment
from egmae_jax.models import timm
from egmae_jax.run.saved_run import SavedRun
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


@pytest.fixture(scope="session")
def altered(moved, tmp_path_factory):
    """Makes copies of the run with other config fields, __ for the dot, and other networks.

    `draw` makes the variables of a network from its name and a seed; None: they stay.
    """

    def copy(*, draw=None, **fields):
        workdir = shutil.copytree(moved[0], tmp_path_factory.mktemp("altered") / "run")
        config = json.loads((workdir / "config.json").read_text())
        for name, value in fields.items():
            section, _, field = name.rpartition("__")
            (config[section] if section else config)[field] = value
        (workdir / "config.json").write_text(json.dumps(config))
        run = SavedRun(workdir)
        for seed, branch in enumerate(run.branches if draw else ()):
            variables = draw(branch.model_name, seed)
            timm.save(variables, run.paths.finetuned(branch.name, 0), branch.model_name)
        return workdir

    return copy
