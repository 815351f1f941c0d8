"""COVID-19 Radiography: chest X-rays in four classes.

python main.py --config=configs/covid.py --config.data.dir=<folder> --workdir=runs/covid
python main.py --config=configs/covid.py:covid2 ...      (COVID and Normal alone)
    The paper's recipe, for a GPU with ImageNet weights. Not run at full size.

The paper reports a "COVID2" derived from this data set and does not say which classes it kept. Two
classes is our reading of the name; all four are the default.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py, and 'covid2'."""
    config = default_config.get_config()
    config.data.name = "covid"
    config.data.dir = "data/covid"
    config.data.color = "grey"  # X-rays; some files are stored as colour
    if preset == "covid2":
        config.data.classes = ("COVID", "Normal")
        return config
    return default_config.apply_preset(config, preset)
