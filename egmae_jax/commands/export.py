"""Command line."""

import sys

from egmae_jax.deploy.export.run import main

if __name__ == "__main__":
    sys.exit(main())
