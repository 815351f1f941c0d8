"""What a terminal is shown: errors and log lines, as they are."""

import contextlib
import io
import logging
import re

import pytest
import rich.console
from hypothesis import example, given
from hypothesis import strategies as st

from egmae_jax.core import console


@given(st.text(st.characters(exclude_categories=()), max_size=30))
@example("[/]")
@example("\\[/]\\")
@example("\x1b]0;title\x07")
@example("m\udce4rz :cat:")
def test_errors_are_printed_as_they_are_but_for_control_characters(message):
    with contextlib.redirect_stderr(io.StringIO()) as output, pytest.raises(SystemExit):
        console.fail(message)
    printed = output.getvalue()
    assert "\x1b]" not in printed.replace("\x1b[", "")
    if message.isprintable():
        assert f"Error: {message}" in printed.replace("\x1b[1;31m", "").replace("\x1b[0m", "")


def test_log_lines_are_no_markup(monkeypatch):
    project = logging.getLogger("egmae_jax")
    library = logging.getLogger("pydicom")
    for name in ("handlers", "propagate", "level"):  # as they were, for the tests that follow
        monkeypatch.setattr(project, name, getattr(project, name))
        monkeypatch.setattr(library, name, getattr(library, name))
    for is_terminal in (True, False):
        output = io.StringIO()
        printed = rich.console.Console(file=output, force_terminal=is_terminal, emoji=False)
        monkeypatch.setattr(console, "terminal", printed)
        monkeypatch.setattr("sys.stdout", output)
        console.set_up_logging()
        logging.getLogger("egmae_jax.x").warning("left out: %s", "[/] :cat: [red]")
        assert "[/] :cat: [red]" in re.sub(r"\x1b\[[\d;]*m", "", output.getvalue())
        assert not logging.getLogger("pydicom.pixels").isEnabledFor(logging.ERROR)
