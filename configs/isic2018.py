"""ISIC 2018 task 3: dermoscopic images in seven classes.

python main.py --config=configs/isic2018.py --config.data.dir=<folder> --workdir=runs/isic2018
    The paper's recipe, for a GPU with ImageNet weights. Not run at full size.
python main.py --config=configs/isic2018.py:cpu --config.data.dir=<folder> \
    --config.data.protocol=grouped --config.imagenet.weights=none --workdir=runs/isic2018_cpu
    On two CPU cores; its wall time was not noted. To expect of the ensemble, of 2005 test images
    over two seeds: accuracy .723 ± .006, AUC .894 ± .003 (docs/results.md).

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
