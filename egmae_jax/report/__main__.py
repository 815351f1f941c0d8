"""Runs `egmae report` for `python -m egmae_jax.report`."""

import runpy

runpy.run_module("egmae_jax.commands.report", run_name="__main__")
