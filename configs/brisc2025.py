"""BRISC 2025: 6000 slices of brain MRI in four classes, with an official test part.

python main.py --config=configs/brisc2025.py --config.data.dir=<folder> --workdir=runs/brisc
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.

configs/brain_tumor.py, layer selection on a ResNet-18, runs on these images with
--config.data.name=brisc2025. Most of them are also in the Kaggle data set of that config, so
neither is an external test of the other.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "brisc2025"
    config.data.dir = "data/brisc2025"
    config.data.color = "grey"
    return default_config.apply_preset(config, preset)
