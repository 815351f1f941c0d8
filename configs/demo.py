"""The complete recipe on generated ultrasound phantoms, offline.

python main.py --config=configs/demo.py --workdir=runs/demo      (what `make demo` runs)
    Two to three minutes on two CPU cores. Expected on 72 test images with one seed: accuracy .389
    (random start), .569 (MAE), .556 (ensemble); AUC .562, .753, .709 (README.md).
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """A shortened CPU preset, offline: the ImageNet branch starts from random weights."""
    config = default_config.get_config()
    default_config.set_cpu(config)
    config.data.name = "phantoms"
    config.data.dir = "runs/phantoms"
    config.data.image_size = 64
    config.data.store_size = 96
    config.imagenet.weights = "none"
    config.pretrain.epochs = 30
    config.finetune.epochs = 25
    config.rounds.count = 1
    return default_config.apply_preset(config, preset)
