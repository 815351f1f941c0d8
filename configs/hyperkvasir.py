"""HyperKvasir: endoscopic images; 10662 in 23 classes, or fewer with --config.data.classes.

python main.py --config=configs/hyperkvasir.py --config.data.dir=<folder> --workdir=runs/hyperkvasir
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.

Frames of one examination follow each other, so that many images are near-duplicates; the protocol
'grouped' keeps them in one part.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "hyperkvasir"
    config.data.dir = "data/hyperkvasir"
    return default_config.apply_preset(config, preset)
