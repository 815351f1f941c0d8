"""Brain tumour MRI in four classes (Kaggle), or BRISC 2025 by --config.data.name=brisc2025.

python main.py --config=configs/brain_tumor.py --config.data.dir=<folder> --workdir=runs/brain

300 groups of images have identical pixels, 189 of which span Training and Testing: copies are left
out and the rest is split anew by near-duplicates. --config.data.protocol=official keeps Testing as
it is and leaves its copies out of Training; --config.data.drop_leaks=False keeps those too.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(preset: str | None = None) -> ConfigDict:
    """The paper's recipe; presets as in configs/busi.py."""
    config = default.get_config()
    config.data.name = "brain_tumor"
    config.data.dir = "data/brain_tumor_mri"
    config.data.color = "grey"  # files are grey or RGB, and which of them tells the class
    config.data.deduplicate = True
    return default.apply_preset(config, preset)
