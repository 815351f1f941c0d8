"""ISIC 2018 task 3: dermoscopic images in seven classes.

python main.py --config=configs/isic2018.py --config.data.dir=<folder> --workdir=runs/isic2018

Images of one lesion stay together. The official validation and test parts are used; one that is not
in the folder is taken from the training part, lesion by lesion. With the training part alone, which
is what most people have: --config.data.protocol=grouped.
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "isic2018"
    config.data.dir = "data/isic2018"
    config.data.protocol = "official"
    default_config.apply_preset(config, preset)
    if preset == "cpu":  # ten times the images of BUSI
        config.pretrain.epochs, config.pretrain.warmup_epochs = 2, 1
        config.finetune.epochs, config.finetune.warmup_epochs = 3, 1
    return config
