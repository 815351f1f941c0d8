"""Kvasir: 8000 endoscopic images in eight classes.

python main.py --config=configs/kvasir.py --config.data.dir=<folder> --workdir=runs/kvasir
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "kvasir"
    config.data.dir = "data/kvasir"
    return default_config.apply_preset(config, preset)
