"""The paper's recipe without a data set; egmae_jax/run/default_config.py has every field.

Start a config of your own in the same way:

    from egmae_jax.run import default_config

    def get_config():
        config = default_config.get_config()
        config.pretrain.epochs = 100
        return config
"""

from egmae_jax.run.default_config import get_config

__all__ = ["get_config"]
