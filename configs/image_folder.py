"""Your own images, with one folder per class.

python main.py --config=configs/image_folder.py --config.data.dir=<folder> --workdir=runs/mine
    The paper's recipe. It needs a GPU and ImageNet weights. Not run, so neither wall time nor
    figures are known.
python main.py --config=configs/image_folder.py:cpu --config.data.dir=<folder> \
    --config.pretrain.epochs=10 --config.finetune.epochs=8 --config.imagenet.weights=none \
    --workdir=runs/mine_cpu
    On two CPU cores; the wall time was not recorded. On chest X-rays of three classes, with
    data.color=grey and a data.group_pattern, the ensemble had accuracy .769 ± .013 and AUC .915 ±
    .002 on 225 test images over two seeds (docs/results.md).
"""

from ml_collections import ConfigDict

from egmae_jax.run import default_config


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default_config.get_config()
    config.data.name = "image_folder"
    return default_config.apply_preset(config, preset)
