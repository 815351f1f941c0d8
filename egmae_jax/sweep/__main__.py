"""Runs `egmae sweep` for `python -m egmae_jax.sweep`."""

import runpy

runpy.run_module("egmae_jax.commands.sweep", run_name="__main__")
