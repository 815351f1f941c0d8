"""ASFF-ResNet-50: are skin lesions benign or malignant? With classic CNNs beside it.

python main.py --config=configs/skin_asff.py --config.data.dir=<folder of ISIC 2018> \
    --workdir=runs/asff
python main.py --config=configs/skin_asff.py:compare ...    with five classic CNNs as branches
python main.py --config=configs/skin_asff.py --config.data.name=skin_lesions ...
    For a GPU with ImageNet weights. Not run at full size.
python main.py --config=configs/skin_asff.py:compare,cpu --config.data.dir=<folder of ISIC 2018> \
    --config.data.protocol=grouped --config.imagenet.weights=none --workdir=runs/cnns_cpu
    64 pixels and three epochs: 80 minutes on two CPU cores that did other work besides. To expect
    of the ASFF-ResNet-50, of 2003 test images over two seeds: accuracy .828 ± .005, AUC .864 ± .007
    (docs/howto/companions.md).

The source took 3297 images (`skin_lesions`), whose lesions are not known. The default is the
same question put to ISIC 2018: melanoma, BCC and AKIEC against the rest, grouped by lesion. With
its training part alone: --config.data.protocol=grouped.
"""

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.run import default_config

BASELINES = ("resnet18", "resnet34", "resnet50", "squeezenet1_0", "squeezenet1_1")


def get_config(words: str | None = None) -> ConfigDict:
    """The ASFF-ResNet-50 from a ResNet-50's ImageNet weights; words: 'compare', 'cpu'."""
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
