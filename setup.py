"""Brings configs/ along as egmae_jax/configs; pyproject.toml says all else.

`egmae train --config=configs/busi.py` then works from any folder. A table in pyproject.toml can
either find packages or say where one lies, not both.
"""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["egmae_jax*"]),
        *("egmae_jax.configs", "egmae_jax.configs.sweeps"),
    ],
    package_dir={"egmae_jax.configs": "configs"},
)
