"""Draws patch entropy, noise and reconstructions, and measures where the noise is.

The figure has one row per image: the entropy H of the patches, the noise's standard deviation
sigma, the corrupted input, the masked patches M and, for a workdir with finished pre-training, the
reconstruction and its error. The noise is measured over the whole data set, for each class and, if
the data set has lesion masks, inside the lesions, in a ring around them and outside.

With --config=configs/busi.py --config.data.dir=... instead of --workdir no training is needed, and
there is no reconstruction. Images are resized and cropped as for evaluation; training uses random
crops, which are corrupted by the same function.
"""

import argparse
import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.explain import entropy_maps, source
from egmae_jax.run.workdir import local_folder


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae entropy_maps`."""
    parser = Parser("entropy_maps", __doc__)
    parser.add_config("configs/busi.py", required=False)
    add = parser.add_argument
    add("--workdir", metavar="FOLDER", help="folder of a run whose pre-training is finished")
    add("--out", default="runs/entropy_maps", metavar="FOLDER",
        help="folder for the figures and noise.json")  # fmt: skip
    add("--images", type=_parse_count, default=6, metavar="N",
        help="number of images to draw, evenly from all classes")  # fmt: skip
    add("--file", action="append", default=[], metavar="IMAGE",
        help="image of the data set to draw instead; may be repeated")  # fmt: skip
    add("--nostatistics", action="store_false", dest="statistics",
        help="do not measure the noise over the whole data set")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    workdir = None if options.workdir is None else local_folder(options.workdir)
    out = local_folder(options.out, "--out")
    require_writable(out, f"--out={out}")
    with explain_storage_errors(out, *([workdir] if workdir else [])):
        entropy_maps.run(
            source.resolve_config(workdir, options.config),
            workdir,
            out,
            files=options.file,
            count=options.images,
            statistics=options.statistics,
        )


def _parse_count(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a whole number from 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
