"""Exports the models of a finished run for timm, for JAX without this package, and for ONNX.

`run.export_run` writes a folder for each branch and one for the ensemble, loads every file again
and compares its outputs with the run's. `egmae export --help` lists the files.
"""
