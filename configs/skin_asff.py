"""ASFF ResNet-50, which classifies skin lesions as benign or malignant, and classic CNNs.

python main.py --config=configs/skin_asff.py --config.data.dir=<folder of ISIC 2018> \
    --workdir=runs/asff
python main.py --config=configs/skin_asff.py:compare ...    with five classic CNNs as branches
python main.py --config=configs/skin_asff.py --config.data.name=skin_lesions ...
    For a GPU with ImageNet weights. Not run, so neither wall time nor figures are known.
python main.py --config=configs/skin_asff.py:compare,cpu --config.data.dir=<folder of ISIC 2018> \
    --config.data.protocol=grouped --config.imagenet.weights=none --workdir=runs/cnns_cpu
    64 pixels and three epochs: 80 minutes on two shared CPU cores. Expected for the ASFF ResNet-50
    on 2003 test images over two seeds: accuracy .828 ± .005, AUC .864 ± .007
    (docs/howto/companions.md).

The publication uses 3297 images (`skin_lesions`) and does not state which show the same lesion. The
default is ISIC 2018 with two classes, grouped by lesion: melanoma, BCC and AKIEC are malignant, the
others benign. If you have only its training part, use --config.data.protocol=grouped.
"""

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.run import default_config

BASELINES = ("resnet18", "resnet34", "resnet50", "squeezenet1_0", "squeezenet1_1")


def get_config(words: str | None = None) -> ConfigDict:
    """ASFF ResNet-50 from a ResNet-50's ImageNet weights; words after the colon: compare, cpu."""
    config = default_config.get_config()
    config.data.name = "isic2018_binary"
    config.data.dir = "data/isic2018"
    config.data.protocol = "official"
    default_config.set_companion(config, "asff_resnet50")
    config.branches = ("asff_resnet50",)
    for word in words.split(",") if words else ():
        if word == "compare":
            config.branches += BASELINES
        elif word == "cpu":
            config.data.image_size = 64
            config.data.store_size = 80
            config.finetune.resize = 68
            config.finetune.epochs = 3
            config.finetune.learning_rate = 1e-3
            config.rounds.count = 2
        else:
            raise ConfigError(f"There is no preset {word!r}. Words: compare, cpu.")
    return config
