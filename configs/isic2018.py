"""ISIC 2018 task 3: dermoscopic images in seven classes.

python main.py --config=configs/isic2018.py --config.data.dir=<folder> --workdir=runs/isic2018
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.
python main.py --config=configs/isic2018.py:cpu --config.data.dir=<folder> \
    --config.data.protocol=grouped --config.imagenet.weights=none --workdir=runs/isic2018_cpu
    On two CPU cores; the wall time was not recorded. Expected for the ensemble on 2005 test images
    over two seeds: accuracy .723 ± .006, AUC .894 ± .003 (docs/results.md).

Images of one lesion stay together. The official validation and test parts are used; if one of them
is not in the folder, it is split off the training part by lesions. If you have only the training
part, use --config.data.protocol=grouped.
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
    if preset == "cpu":  # has ten times as many images as BUSI
        config.pretrain.epochs, config.pretrain.warmup_epochs = 2, 1
        config.finetune.epochs, config.finetune.warmup_epochs = 3, 1
    return config
