"""What a user types: `egmae predict`, or `python -m egmae_jax.predict`, is predict.py here."""

import importlib
import sys
import textwrap
from collections.abc import Sequence

import egmae_jax
from egmae_jax.core import console

# In the order in which a user meets them; each is imported when it is called.
COMMANDS = {
    "download": "Fetches a data set that may be fetched.",
    "audit": "Reports what is odd about a data set, before a run.",
    "train": "Trains, evaluates and reports; goes on where it was stopped.",
    "sweep": "Runs the variants of a recipe and compares them.",
    "report": "Writes a report of a run or of several, or a table for a paper.",
    "predict": "Classifies new images.",
    "explain": "Draws and scores the regions that speak for a class (Grad-CAM).",
    "entropy_maps": "Draws and measures what the entropy guides.",
    "export": "Takes a run's models to timm, to JAX without us, and to ONNX.",
    "demo": "Opens a local page where one drops an image.",
    "compare": "Runs a PyTorch checkpoint there and here, layer by layer.",
}
_HELP = """usage: egmae COMMAND [FLAG ...]

{description}

{commands}

`egmae COMMAND --help` lists the flags of a command. To begin:

  egmae train --config=configs/demo.py --workdir=runs/demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Calls the command that the first argument names; returns its exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {command:{width}}  {does}" for command, does in COMMANDS.items())
        description = textwrap.fill(egmae_jax.__doc__ or "", width=80)
        print(_HELP.format(description=description, commands=lines), end="")
        return 0
    if name in ("--version", "version"):
        print(f"egmae_jax {egmae_jax.__version__}")
        return 0
    if name not in COMMANDS:
        console.fail(f"There is no command {name!r}. See egmae --help.", 2)
    sys.path.insert(0, "")  # the current folder, as python -m has it: for trackers of the user
    return importlib.import_module(f"egmae_jax.commands.{name}").main(rest) or 0
