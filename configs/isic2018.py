"""ISIC 2018 task 3: dermoscopic images in seven classes.

The loader of this data set is not written yet: a run stops and says so.

python main.py --config=configs/isic2018.py --config.data.dir=<folder> --workdir=runs/isic2018
"""

from ml_collections import ConfigDict

from configs import default


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default.get_config()
    config.data.name = "isic2018"
    config.data.dir = "data/isic2018"
    return default.apply_preset(config, preset)
