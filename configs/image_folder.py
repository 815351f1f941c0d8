"""Your own images: any tree with one folder a class.

python main.py --config=configs/image_folder.py --config.data.dir=<folder> --workdir=runs/mine
    The paper's recipe, for a GPU with ImageNet weights. Not run at full size.
python main.py --config=configs/image_folder.py:cpu --config.data.dir=<folder> \
    --config.pretrain.epochs=10 --config.finetune.epochs=8 --config.imagenet.weights=none \
    --workdir=runs/mine_cpu
    On two CPU cores; its wall time was not noted. With data.color=grey and a data.group_pattern it
    gave the ensemble, of 225 test images of chest X-rays in three classes over two seeds, accuracy
    .769 ± .013 and AUC .915 ± .002 (docs/results.md).
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "image_folder"
    return default_config.apply_preset(config, preset)
