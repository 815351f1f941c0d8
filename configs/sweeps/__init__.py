"""Configs of sweeps: egmae sweep --config=configs/sweeps/epochs.py:busi --out=runs/epochs."""
