"""BUSI: 780 breast ultrasound images in three classes.

python main.py --config=configs/busi.py --config.data.dir=<folder> --workdir=runs/busi
python main.py --config=configs/busi.py:cpu --config.data.dir=<folder> --workdir=runs/busi_cpu
python main.py --config=configs/busi.py:100/30 ...      (paper figure 2: 100/30 ... 1000/15)
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe on BUSI; presets 'cpu' and '<pre-training>/<fine-tuning epochs>'."""
    config = default_config.get_config()
    config.data.name = "busi"
    config.data.dir = "data/busi"
    config.data.color = "grey"  # ultrasound; colour are only callipers and marks
    return default_config.apply_preset(config, preset)
