"""Configs: `default.py` has every field, the others one file a data set."""
