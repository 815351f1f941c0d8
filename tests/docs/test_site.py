"""The documentation is built without a warning, and names every flag that there is."""

import argparse
import importlib

import pytest

from egmae_jax.commands import COMMANDS
from egmae_jax.commands.arguments import Parser
from tests import REPOSITORY, tiny

# Of which docs/reference/commands.md lists the flags by hand; of the others it prints the help.
BY_HAND = ("train", "audit", "sweep", "entropy_maps")


@pytest.mark.essential
@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    pytest.importorskip("furo")
    # 'dummy' reads all pages and docstrings and resolves all links; only HTML is not written.
    command = ("-m", "sphinx", "-qW", "--keep-going", "-b", "dummy", "docs", tmp_path)
    assert tiny.python(*command).stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_reference_names_every_flag(command, monkeypatch):
    page = (REPOSITORY / "docs/reference/commands.md").read_text()
    section = page.split(f"\n## egmae {command}\n")[1].split("\n## ")[0]
    if command not in BY_HAND:
        assert f"{{command-help}} egmae_jax.commands.{command}\n" in section
        return
    parsers = []

    def read(parser, _):
        parsers.append(parser)
        raise SystemExit

    monkeypatch.setattr(Parser, "read", read)
    with pytest.raises(SystemExit):
        importlib.import_module(f"egmae_jax.commands.{command}").main([])
    (parser,) = parsers
    actions = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    flags = {flag for action in actions for flag in action.option_strings} - {"-h", "--help"}
    assert "--out" in flags or "--workdir" in flags
    for flag in flags - {"--config.FIELD"}:
        assert f"`{flag}`" in section, flag
