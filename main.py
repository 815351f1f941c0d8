"""Trains and evaluates a recipe: python main.py --config=configs/busi.py --workdir=runs/busi."""

import sys

from egmae_jax.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
