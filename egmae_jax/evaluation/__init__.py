"""Predictions, metrics, confidence intervals, paired tests and calibration, without JAX."""
