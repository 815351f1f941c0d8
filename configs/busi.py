"""BUSI: 780 breast ultrasound images in three classes.

python main.py --config=configs/busi.py --config.data.dir=<folder> --workdir=runs/busi
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.
python main.py --config=configs/busi.py:100/30 ...
    Other pre-training / fine-tuning epochs (paper figure 2: 100/30 ... 1000/15). Not run.
python main.py --config=configs/busi.py:cpu --config.data.dir=<folder> \
    --config.imagenet.weights=none --workdir=runs/busi_cpu
    Eight minutes on two CPU cores. Expected on 157 test images over two seeds: accuracy .589 ± .005
    (random start), .618 ± .018 (MAE), .627 ± .041 (ensemble); AUC .681 ± .014, .709 ± .025,
    .701 ± .024 (docs/results.md).
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe on BUSI; presets: 'cpu' and '<pre-training>/<fine-tuning epochs>'."""
    config = default_config.get_config()
    config.data.name = "busi"
    config.data.dir = "data/busi"
    config.data.color = "grey"  # ultrasound; only callipers and marks are coloured
    return default_config.apply_preset(config, preset)
