"""Takes a finished run's models elsewhere: to timm, into JAX without this package, to ONNX.

Every model becomes a folder of --out that can be a repository of the Hugging Face hub: one a
branch, and 'ensemble' where there are several. In it are README.md, the model card, and as asked

    model.safetensors, config.json    the weights, for timm.create_model("local-dir:FOLDER", ...)
    model.stablehlo(.json)            the whole classifier as one program, for jax.export
    model.onnx                        likewise, for an ONNX runtime

Every file is loaded again and compared with the run: exit status 1 where one computes something
else. An ensemble and an ASFF-ResNet have no ONNX.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from egmae_jax.commands.arguments import Parser
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.deploy.export import run


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae export`."""
    parser = Parser("export", __doc__)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="FOLDER", help="folder of the run")
    add("--out", required=True, type=Path, metavar="FOLDER",
        help="folder that gets a folder for each model")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch to export; without it all branches and their ensemble")  # fmt: skip
    add("--round", type=int, default=0, metavar="I", dest="round_index",
        help="round of the run")  # fmt: skip
    add("--formats", default="timm,stablehlo", metavar="LIST",
        help=f"some of {', '.join(run.FORMATS)}; onnx needs pip install -e '.[onnx]' and brings "
        "timm's files along")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    out, formats = options["out"], options.pop("formats")
    with explain_storage_errors(options["workdir"], out):
        files = run.export_run(formats=[x for x in formats.split(",") if x], **options)
    run.show(files, out)
    if wrong := [str(file.path) for file in files if file.is_wrong]:
        console.fail(f"Not what the run computed, and not to be used: {', '.join(wrong)}.")


if __name__ == "__main__":
    sys.exit(main())
