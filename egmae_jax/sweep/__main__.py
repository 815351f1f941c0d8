"""`python -m egmae_jax.sweep` is commands/sweep.py."""

import runpy

runpy.run_module("egmae_jax.commands.sweep", run_name="__main__")
