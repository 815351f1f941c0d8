"""`python -m egmae_jax.report` is commands/report.py."""

import runpy

runpy.run_module("egmae_jax.commands.report", run_name="__main__")
