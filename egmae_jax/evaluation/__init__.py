"""Predictions and what they are worth: metrics, intervals, tests, calibration. Needs no JAX."""
