"""Takes a finished run's models elsewhere: to timm, into JAX without this package, to ONNX."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.core import console
from egmae_jax.core.files import storage_errors_told
from egmae_jax.deploy.export import run


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0, or 1 where a file computes something else."""
    parser = argparse.ArgumentParser(
        prog="python -m egmae_jax.export",
        description="A finished run's models for timm, JAX without this package, and ONNX; each "
        "file is loaded again and compared with the run.",
    )
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="FOLDER", help="of the run")
    add("--out", required=True, type=Path, metavar="FOLDER", help="gets a folder for each model")
    add("--branch", metavar="NAME", help="to export alone; without it all, and their ensemble")
    add("--round", type=int, default=0, metavar="I", dest="round_index", help="of the run; 0")
    add(
        "--formats",
        default="timm,stablehlo",
        metavar="LIST",
        help=f"of {', '.join(run.FORMATS)}; timm,stablehlo if not given. onnx needs "
        "pip install -e '.[onnx]' and brings timm's files along",
    )
    options = vars(parser.parse_args(arguments))
    console.set_up_logging()
    out, formats = options["out"], options.pop("formats")
    with storage_errors_told(options["workdir"], out):
        files = run.export_run(formats=[x for x in formats.split(",") if x], **options)
    run.show(files, out)
    if wrong := [str(file.path) for file in files if file.wrong]:
        console.fail(f"Not what the run computed, and not to be used: {', '.join(wrong)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
