"""Names the arguments that are no fields of a config: python -m tests.docs.fields FIELD ..."""

import sys

from configs import default
from egmae_jax.run import config

if unknown := set(sys.argv[1:]) - config.flatten(default.get_config()).keys():
    sys.exit(f"There is no config field {', '.join(sorted(unknown))}.")
