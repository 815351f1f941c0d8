"""Predictions of a part and what is made of them: metrics, intervals, calibration. Without JAX."""
