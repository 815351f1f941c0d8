"""Compares a PyTorch checkpoint of timm or torchvision with the same network in JAX.

Both run on the same images. Prints the relative difference of the activations of each layer, the
first layer that differs, the difference of the logits, and which predictions and pixels differ.
With --weights our network has other weights, such as those that a run exported. Needs torch,
torchvision and timm: pip install -e '.[parity]'.

Exit status: 0 if all layers are equal within the tolerance and all predictions agree, 1 if not, 2
if the input cannot be used.
"""

import sys
from collections.abc import Sequence

from egmae_jax import models
from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_output, write_json
from egmae_jax.deploy import compare


@console.user_errors(status=2)
def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `egmae compare`; returns the exit status."""
    parser = Parser("compare", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--checkpoint", required=True, type=local_path, metavar="FILE",
        help="PyTorch checkpoint: safetensors, or a pickle that contains only tensors")  # fmt: skip
    add("--images", required=True, type=local_path, metavar="FOLDER",
        help="folder of the images, which is searched recursively")  # fmt: skip
    add("--model", default="convnext_tiny", metavar="NAME",
        help=f"name of the model: {', '.join(models.names())}")  # fmt: skip
    add("--image_size", type=int, default=224, metavar="PIXELS",
        help="side of the input images; a multiple of 32 for ConvNeXt")  # fmt: skip
    add("--weights", type=local_path, metavar="FILE",
        help="safetensors file for our network instead of the checkpoint")  # fmt: skip
    add("--max_images", type=int, default=64, metavar="N",
        help="largest number of images to compare, evenly spread over the folder")  # fmt: skip
    add("--tolerance", type=float, default=1e-4, metavar="X",
        help="largest relative error at which a layer counts as equal")  # fmt: skip
    add("--json", type=local_path, metavar="FILE",
        help="file for the comparison in JSON")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    checkpoint, folder = options.pop("checkpoint"), options.pop("images")
    if (path := options.pop("json")) is not None:
        require_output(path, (".json",), [checkpoint])
    with explain_storage_errors(checkpoint, folder):
        comparison = compare.compare(checkpoint, folder, **options)
    compare.show(comparison)
    if path is not None:
        write_json(path, compare.to_json(comparison))
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
