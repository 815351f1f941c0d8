"""Names the arguments that are no fields of a config: python -m tests.docs.fields FIELD ..."""

import sys

from egmae_jax.run import config, default_config

if unknown := set(sys.argv[1:]) - config.flatten(default_config.get_config()).keys():
    sys.exit(f"There is no config field {', '.join(sorted(unknown))}.")
