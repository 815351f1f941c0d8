"""Draws patch entropy, noise and reconstructions, and measures where the noise is.

The figure has one row per image: the entropy H of the patches, the noise's standard deviation
sigma, the corrupted input, the masked patches M and, for a workdir with finished pre-training, the
reconstruction and its error. The noise is measured over the whole data set, for each class and, if
the data set has lesion masks, inside the lesions, in a ring around them and outside.

With --config=configs/busi.py --config.data.dir=... instead of --workdir no training is needed, and
there is no reconstruction. Images are resized and cropped as for evaluation; training uses random
crops, which are corrupted by the same function.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path, positive
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors, require_writable
from egmae_jax.explain import entropy_maps, source


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae entropy_maps`."""
    parser = Parser("entropy_maps", __doc__)
    parser.add_config("configs/busi.py", required=False)
    add = parser.add_argument
    add(
        "--workdir",
        type=local_path,
        metavar="FOLDER",
        help="folder of a run whose pre-training is finished",
    )
    add("--data_dir", type=local_path, metavar="FOLDER",
        help="folder of the images, if they were moved after training")  # fmt: skip
    add("--out", type=local_path, default="runs/entropy_maps", metavar="FOLDER",
        help="folder for the figures and noise.json")  # fmt: skip
    add("--images", type=positive, default=6, metavar="N",
        help="number of images to draw, evenly from all classes")  # fmt: skip
    add("--file", action="append", default=[], metavar="IMAGE",
        help="image of the data set to draw instead; may be repeated")  # fmt: skip
    add("--nostatistics", action="store_false", dest="statistics",
        help="do not measure the noise over the whole data set")  # fmt: skip
    options = parser.read(arguments)
    console.set_up_logging()
    workdir, out = options.workdir, options.out
    require_writable(out, f"--out={out}")
    with explain_storage_errors(out, *([workdir] if workdir else [])):
        config = source.resolve_config(workdir, options.config)
        if options.data_dir:
            config.data.dir = str(options.data_dir)
        entropy_maps.run(
            config,
            workdir,
            out,
            files=options.file,
            count=options.images,
            statistics=options.statistics,
        )


if __name__ == "__main__":
    sys.exit(main())
