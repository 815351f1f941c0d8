"""The recipe that a sweep varies: the words behind the colon name a config and its own words."""

from ml_collections import ConfigDict

from egmae_jax.core.errors import ConfigError
from egmae_jax.run import config_files


def base(words: str | None) -> ConfigDict:
    """The config of 'busi', or of 'busi,cpu', which is configs/busi.py:cpu.

    Raises:
        ConfigError: there is no such config, or it pre-trains nothing.
    """
    known = config_files.names()
    name, _, rest = (words or "").partition(",")
    if name not in known:
        raise ConfigError(
            f"A sweep needs a recipe behind the colon, such as configs/sweeps/epochs.py:busi,cpu; "
            f"{name!r} is none of {', '.join(known)}."
        )
    config = config_files.load(name, rest or None)
    if "mae" not in config.branches:
        raise ConfigError(f"configs/{name}.py{':' * bool(rest)}{rest} has no branch 'mae' to vary.")
    return config
