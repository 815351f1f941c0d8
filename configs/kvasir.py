"""Kvasir: 8000 endoscopic images in eight classes.

python main.py --config=configs/kvasir.py --config.data.dir=<folder> --workdir=runs/kvasir
"""

from ml_collections import ConfigDict

from configs import default


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default.get_config()
    config.data.name = "kvasir"
    config.data.dir = "data/kvasir"
    return default.apply_preset(config, preset)
