"""Sweeps: egmae sweep --config=configs/sweeps/epochs.py:busi --out=runs/epochs."""
