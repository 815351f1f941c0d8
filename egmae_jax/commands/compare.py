"""Runs a PyTorch checkpoint, of timm's or torchvision's, there and here on the same images.

Prints how far the activations are apart layer by layer, the first layer where they part, the
difference of the logits and which predictions agree. With --weights ours has other weights, such as
a run's export. Needs torch, torchvision and timm: pip install -e '.[parity]'.

Exit status: 0 if every layer is within the tolerance and all predictions agree, 1 if not, 2 if the
input cannot be used.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax import models
from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_output
from egmae_jax.deploy import compare


@console.user_errors(status=2)
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = Parser("compare", __doc__)
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="safetensors, or a pickle of tensors")
    add("--images", required=True, metavar="FOLDER", help="images, at any depth")
    add("--model", default="convnext_tiny", metavar="NAME", help=", ".join(models.names()))
    add(
        "--image_size",
        type=int,
        default=224,
        metavar="PIXELS",
        help="ConvNeXt: a multiple of 32",
    )
    add("--weights", metavar="FILE", help="safetensors that ours is given instead")
    add("--max_images", type=int, default=64, metavar="N", help="of more, evenly spread ones")
    add("--batch", type=int, default=8, metavar="N", help="images at a time")
    add("--tolerance", type=float, default=1e-4, metavar="X", help="of a layer's relative error")
    add("--json", type=Path, metavar="FILE", help="where to write all figures")
    options = vars(parser.read(arguments))
    json_file = options.pop("json")
    console.set_up_logging()
    checkpoint, folder = Path(options.pop("checkpoint")), Path(options.pop("images"))
    written = []
    if json_file is not None:
        require_output(json_file, (json_file.suffix.lower(),), [checkpoint])
        written.append(json_file.parent)
    with explain_storage_errors(checkpoint, folder, *written):
        comparison = compare.compare(checkpoint, folder, **options)
        if json_file is not None:
            compare.save(comparison, json_file)
    compare.show(comparison)
    return 0 if comparison.passed else 1


if __name__ == "__main__":
    sys.exit(main())
