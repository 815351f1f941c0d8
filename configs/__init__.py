"""Configs, one file per data set; egmae_jax/run/default_config.py has every field."""
