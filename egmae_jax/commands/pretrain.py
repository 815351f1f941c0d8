"""Pre-trains an encoder on folders of images without labels.

All images below the folders are used, in every format that is read; subfolders have no meaning. A
tenth of the images of the first folder (data.validation_share) is held out, to measure how well
images are reconstructed; near-duplicates, and patients by data.group_pattern, stay on one side.

The folder --out is a workdir: the same command resumes a stopped run. At the end it holds

    encoder.safetensors    the encoder, timm.create_model(NAME, num_classes=0, checkpoint_path=...)
    pretrain/              the whole autoencoder

`egmae train --config.pretrain.weights=OUT` starts from it, with --config.pretrain.epochs=0 without
training it further. Such a run is refused if its validation or test images were among these images.

Exit status: as for train.
"""

import sys
from collections.abc import Sequence

from ml_collections import ConfigDict

from egmae_jax import experiment
from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.commands.startup import start_training
from egmae_jax.core import console, hosts, preemption
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.data.datasets import unlabelled
from egmae_jax.run import encoder

_CONFIG = "configs/image_folder.py"
_SET = ("data.name", "data.dir", "pretrain.unlabelled", "branches", "rounds.kind")


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae pretrain`."""
    parser = Parser("pretrain", __doc__)
    parser.add_config(f"{_CONFIG}:cpu", required=False)
    parser.set_defaults(config=_CONFIG)
    parser.add_argument("--images", required=True, type=local_path, nargs="+", action="extend",
        metavar="FOLDER", help="folders that are searched recursively")  # fmt: skip
    parser.add_argument("--out", required=True, type=local_path, metavar="FOLDER",
        help="folder for all results; resumes the run that is in it")  # fmt: skip
    options = parser.read(arguments)
    if fixed := options.overrides.intersection(_SET):
        raise ConfigError(f"--config.{min(fixed)} cannot be set: --images names the images.")
    config = _unlabelled_only(options.config, list(map(str, options.images)))
    if "pretrain.splits" not in options.overrides:
        config.pretrain.splits = ("train", "test")
    start_training()
    try:
        experiment.run(config, options.out, stage="pretrain")
    except preemption.Preempted as stop:
        stop.exit()
    if hosts.is_primary():
        with explain_storage_errors(options.out):
            path = encoder.write(options.out)
        console.terminal.print(f"Written to {path}", soft_wrap=True)


def _unlabelled_only(config: ConfigDict, folders: Sequence[str]) -> ConfigDict:
    """Changes a config so that all images are those of the folders, and no stage needs labels."""
    config.data.name, config.data.dir, config.data.classes = unlabelled.NAME, folders[0], ()
    config.pretrain.unlabelled = tuple(folders[1:])
    config.data.protocol, config.rounds.kind, config.rounds.count = "grouped", "seeds", 1
    config.branches, config.fusion.kind = ("mae",), "mean"
    return config


if __name__ == "__main__":
    sys.exit(main())
