"""Runs a PyTorch checkpoint, of timm's or torchvision's, there and here on the same images.

Prints how far the activations are apart layer by layer, the first layer where they part, the
difference of the logits, and which predictions and pixels differ. With --weights our network has
other weights, such as a run's export. Needs torch, torchvision and timm:
pip install -e '.[parity]'.

Exit status: 0 if every layer is within the tolerance and all predictions agree, 1 if not, 2 if the
input cannot be used.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax import models
from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.deploy import compare


@console.user_errors(status=2)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `egmae compare`; returns the exit status."""
    parser = Parser("compare", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="safetensors, or a pickle of tensors")
    add("--images", required=True, metavar="FOLDER", help="images, at any depth")
    add("--model", default="convnext_tiny", metavar="NAME", help=", ".join(models.names()))
    add("--image_size", type=int, default=224, metavar="PIXELS",
        help="side of the images; for a ConvNeXt a multiple of 32")  # fmt: skip
    add("--weights", metavar="FILE", help="safetensors that our network is given instead")
    add("--max_images", type=int, default=64, metavar="N",
        help="most images that are compared, evenly spread over the folder")  # fmt: skip
    add("--tolerance", type=float, default=1e-4, metavar="X",
        help="largest relative error of a layer that counts as equal")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    checkpoint, folder = Path(options.pop("checkpoint")), Path(options.pop("images"))
    with explain_storage_errors(checkpoint, folder):
        comparison = compare.compare(checkpoint, folder, **options)
    compare.show(comparison)
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
