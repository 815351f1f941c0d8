"""COVID-19 Radiography: chest X-rays.

The loader of this data set is not written yet: a run stops and says so.

python main.py --config=configs/covid.py --config.data.dir=<folder> --workdir=runs/covid
"""

from ml_collections import ConfigDict

from configs import default


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default.get_config()
    config.data.name = "covid"
    config.data.dir = "data/covid"
    return default.apply_preset(config, preset)
