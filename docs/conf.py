"""How Sphinx builds the documentation: `make docs`."""

import contextlib
import importlib
import inspect
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))

import egmae_jax

project = "egmae_jax"
author = "the egmae_jax developers"
copyright = f"2026, {author}"
version = egmae_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build"]
default_role = "code"  # of text in backticks in docstrings
highlight_language = "text"
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # Flax's docstring of `setup` does not describe ours
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # describes each attribute once

html_theme = "furo"
html_title = "egmae_jax"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"


class CommandHelp(SphinxDirective):
    """Directive `command-help`: inserts the output of `python -m <module> --help`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns the help text as one literal block."""
        main = importlib.import_module(self.arguments[0]).main
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
            main(["--help"])
        return [nodes.literal_block(output.getvalue(), output.getvalue(), language="text")]


def mark_code(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Marks indented lines of a module's docstring as code."""
    if what == "module":
        begins = [i for i in range(2, len(lines)) if lines[i][:1] == " " and not lines[i - 1]]
        for i in reversed(begins):
            if not lines[i - 2].endswith("::"):
                lines[i:i] = ["::", ""]


def describe_field(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Describes the fields of a named tuple by the comments after them."""
    if lines and lines[0].startswith("Alias for field number"):
        module, owner, field = name.rsplit(".", 2)
        source = inspect.getsource(getattr(importlib.import_module(module), owner))
        comment = re.search(rf"^ +{field}: .*?  # (.+)$", source, re.MULTILINE)
        lines[:] = [comment[1] if comment else ""]


def setup(app: Sphinx) -> None:
    """Registers the directive and the docstring handlers with Sphinx."""
    app.connect("autodoc-process-docstring", mark_code)
    app.connect("autodoc-process-docstring", describe_field)
    os.environ["COLUMNS"] = "100"  # line width of argparse
    app.add_directive("command-help", CommandHelp)
