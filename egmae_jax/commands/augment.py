"""Draws images as fine-tuning sees them, in several random augmentations each.

The sheet has one row per image: first as it is evaluated, then cropped, flipped and augmented as
the fields finetune.resize, finetune.augment and finetune.input_noise of the config say. Below an
image that mixup or cutmix has mixed with another one of the sheet are the shares of the classes.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, positive
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_output
from egmae_jax.explain import augmentation_sheet


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae augment`."""
    parser = Parser("augment", __doc__)
    parser.add_config("configs/busi.py")
    add = parser.add_argument
    add("--out", type=local_path, default="runs/augment.png", metavar="FILE",
        help="picture to write, .png")  # fmt: skip
    add("--images", type=positive, default=6, metavar="N",
        help="number of images, evenly from all classes")  # fmt: skip
    add("--draws", type=positive, default=7, metavar="N",
        help="number of random augmentations per image")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    require_output(options.out, [".png"])
    with explain_storage_errors(options.out.parent):
        augmentation_sheet.run(
            options.config, options.out, count=options.images, draws=options.draws
        )
    console.terminal.print(f"The sheet is {options.out}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
