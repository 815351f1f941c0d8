"""The command line: `egmae NAME`, also `python -m egmae_jax.NAME`, runs NAME.py of this folder."""

import difflib
import importlib
import sys
import textwrap
from collections.abc import Sequence

import egmae_jax
from egmae_jax.core import console

# In the order in which a user needs them.
COMMANDS = {
    "download": "Downloads a public data set.",
    "audit": "Checks a data set for problems before a run.",
    "augment": "Draws images as fine-tuning sees them.",
    "train": "Trains, evaluates and reports; resumes a stopped run.",
    "pretrain": "Pre-trains an encoder on images without labels.",
    "sweep": "Runs the variants of a recipe and compares them.",
    "report": "Writes a report of one or several runs, or a table for a paper.",
    "predict": "Classifies new images.",
    "evaluate": "Evaluates a run on labelled images from elsewhere.",
    "features": "Writes the features of images, as a table or as arrays.",
    "explain": "Draws and scores Grad-CAM of test images.",
    "entropy_maps": "Draws patch entropy and noise, and measures where the noise is.",
    "export": "Exports a run's models to timm, StableHLO and ONNX.",
    "demo": "Opens a local page that classifies an image.",
    "compare": "Compares a PyTorch checkpoint with JAX, layer by layer.",
}
_HELP = """usage: egmae COMMAND [FLAG ...]

{description}

{commands}

`egmae COMMAND --help` lists the flags of a command. A first run:

  egmae train --config=configs/demo.py --workdir=runs/demo
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: name of the command and its flags; None uses the arguments of the process.

    Returns:
        The exit status.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if name in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        lines = "\n".join(f"  {command:{width}}  {text}" for command, text in COMMANDS.items())
        description = textwrap.fill(egmae_jax.__doc__ or "", width=80)
        print(_HELP.format(description=description, commands=lines), end="")
        return 0
    if name in ("--version", "version"):
        print(f"egmae_jax {egmae_jax.__version__}")
        return 0
    if name not in COMMANDS:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        console.fail(f"There is no command {name!r}.{hint} See egmae --help.", 2)
    # As with python -m, modules in the current folder can be imported, such as the user's trackers.
    sys.path.insert(0, "")
    return importlib.import_module(f"egmae_jax.commands.{name}").main(rest) or 0
