"""The paper's recipe with nothing of a data set in it: every field is in run/default_config.py.

A config of your own begins the same way:

    from egmae_jax.run import default_config

    def get_config():
        config = default_config.get_config()
        config.pretrain.epochs = 100
        return config
"""

from egmae_jax.run.default_config import get_config

__all__ = ["get_config"]
