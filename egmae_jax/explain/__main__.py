"""Runs `egmae explain` for `python -m egmae_jax.explain`."""

import runpy

runpy.run_module("egmae_jax.commands.explain", run_name="__main__")
