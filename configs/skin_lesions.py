"""3297 dermoscopic images, benign or malignant: the data set of the ASFF ResNet-50.

python main.py --config=configs/skin_lesions.py --config.data.dir=<folder> --workdir=runs/skin
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "skin_lesions"
    config.data.dir = "data/skin_lesions"
    return default_config.apply_preset(config, preset)
