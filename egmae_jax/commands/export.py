"""Exports the models of a finished run for timm, for JAX without this package, and for ONNX.

Each branch, and the ensemble if there are several branches, gets a folder in --out, which can be a
repository on the Hugging Face hub. It contains README.md, the model card, and depending on
--formats

    model.safetensors, config.json    the weights, for timm.create_model("local-dir:FOLDER", ...)
    model.stablehlo(.json)            the whole classifier as one program, for jax.export
    model.onnx                        the whole classifier as one program, for an ONNX runtime

Every file is loaded again and its outputs are compared with the run's; the exit status is 1 if they
differ. There is no ONNX file for the ensemble or an ASFF-ResNet.
"""

import sys
from collections.abc import Sequence

from egmae_jax.commands.arguments import Parser, local_path
from egmae_jax.core import console
from egmae_jax.core.files import explain_storage_errors
from egmae_jax.deploy.export import run


@console.user_errors()
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `egmae export`."""
    parser = Parser("export", __doc__)
    parser.add_import()
    add = parser.add_argument
    add("--workdir", required=True, type=local_path, metavar="FOLDER", help="folder of the run")
    add("--out", required=True, type=local_path, metavar="FOLDER",
        help="folder in which each model gets its own folder")  # fmt: skip
    add("--branch", metavar="NAME",
        help="branch to export (default: all branches and their ensemble)")  # fmt: skip
    add("--round", type=int, default=0, metavar="I", dest="round_index",
        help="round of the run")  # fmt: skip
    add("--formats", default="timm,stablehlo", metavar="LIST",
        help=f"one or several of {', '.join(run.FORMATS)}, separated by commas; onnx needs "
        "pip install -e '.[onnx]' and also writes the files of timm")  # fmt: skip
    options = vars(parser.read(arguments))
    console.set_up_logging()
    out, formats = options["out"], options.pop("formats")
    with explain_storage_errors(options["workdir"], out):
        files = run.export_run(formats=[x for x in formats.split(",") if x], **options)
    run.show(files, out)
    if wrong := [str(file.path) for file in files if file.is_wrong]:
        console.fail(
            "These files do not compute the same as the run and must not be used: "
            f"{', '.join(wrong)}."
        )


if __name__ == "__main__":
    sys.exit(main())
