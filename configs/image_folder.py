"""Your own images: any tree with one folder a class.

python main.py --config=configs/image_folder.py --config.data.dir=<folder> --workdir=runs/mine
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "image_folder"
    return default_config.apply_preset(config, preset)
