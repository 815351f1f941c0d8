"""Takes a finished run's models elsewhere: to timm, into JAX without this package, to ONNX.

python -m egmae_jax.export --workdir=FOLDER --out=FOLDER [--branch=NAME] [--round=I]
    [--formats=timm,stablehlo,onnx]

Every model becomes a folder of --out that can be a repository of the Hugging Face hub: one a
branch, and 'ensemble' where there are several. In it are README.md, the model card, and as asked

    model.safetensors, config.json    the weights, for timm.create_model("local-dir:FOLDER", ...)
    model.stablehlo(.json)            the whole classifier as one program, for jax.export
    model.onnx                        likewise, for an ONNX runtime

Every file is loaded again and its outputs are compared with ours.
"""

from egmae_jax.deploy.export.run import FORMATS, ExportedFile, ExportError, export_run

__all__ = ["FORMATS", "ExportError", "ExportedFile", "export_run"]
