"""Configs: one file a data set; every field is in egmae_jax/run/default_config.py."""
