"""ImageNet weights of a run: the normalisation that they expect."""

import functools
import json
import logging

import pytest

from egmae_jax.core.errors import ConfigError
from egmae_jax.models import registry
from egmae_jax.run.branches import Branch
from egmae_jax.run.imagenet import ImagenetWeights
from tests import tiny

NAME = "vit_small_patch16_224"


def write(folder, name, **settings):
    """Weights of a network in timm's format, with the settings in their configuration."""
    folder.mkdir()
    tiny.write_weights(folder / "model.safetensors", name, seed=0)
    config = {"architecture": name, "pretrained_cfg": settings}
    (folder / "config.json").write_text(json.dumps(config))
    return ImagenetWeights(str(folder), [Branch(name, name)], folder / "record.json")


@pytest.fixture
def small(monkeypatch):
    """A network that expects images with mean .5, by the name of one that timm has."""
    specs = dict(registry.NETWORKS.entries)
    spec = specs[NAME]
    shrunk = functools.partial(spec.build.func, 1, 24, 3)
    specs[NAME] = spec._replace(build=shrunk)
    monkeypatch.setattr(registry.NETWORKS, "entries", specs)


def test_weights_that_expect_other_images_than_they_get_are_refused(small, tmp_path):
    of_dino = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    weights = write(tmp_path / "dino", NAME, **of_dino)
    with pytest.raises(ConfigError) as error:
        weights.load([NAME], [])
    for words in (
        "config.json",
        "(0.485, 0.456, 0.406)",
        "(0.5, 0.5, 0.5)",
        "augreg_in21k_ft_in1k",
    ):
        assert words in str(error.value)


def test_other_normalisation_than_imagenets_is_said(small, tmp_path, caplog):
    weights = write(tmp_path / "own", NAME, mean=[0.5] * 3, std=[0.5] * 3)
    with caplog.at_level(logging.INFO):
        weights.load([NAME], [])
    assert f"{NAME} gets images with mean (0.5, 0.5, 0.5)" in caplog.text
    assert weights.variables[NAME]["params"]["cls_token"].shape == (1, 1, 24)


def test_a_configuration_without_normalisation_or_of_another_network_is_no_statement(
    small, tmp_path
):
    write(tmp_path / "bare", NAME).load([NAME], [])
    weights = write(tmp_path / "other", NAME, mean=[0.1] * 3, std=[1.0] * 3)
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace(NAME, "convnext_tiny"))
    weights.load([NAME], [])
