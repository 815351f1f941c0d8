"""Sweeps: python -m egmae_jax.sweep --config=configs/sweeps/epochs.py:busi --out=runs/epochs."""
