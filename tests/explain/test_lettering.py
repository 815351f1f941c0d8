"""Names in figures: how they are wrapped, and in which fonts."""

import matplotlib
import pytest
from matplotlib import font_manager
from rich.cells import cell_len

from egmae_jax.explain.fonts import use_fallback_fonts, wrap


@pytest.mark.parametrize(
    ("text", "lines", "wrapped"),
    [
        ("polyp", 2, "polyp"),
        ("one two three", 3, "one two\nthree"),
        ("abcdefghijklmnopqrst", 2, "abcdefgh\nijklmno\u2026"),
        ("良性腫瘍の所見", 2, "良性腫瘍\nの所見"),  # letters are two columns wide
        ("良性_4_an image", 3, "良性_4_a\nn image"),
    ],
)
def test_names_are_wrapped_to_eight_columns(text, lines, wrapped):
    assert wrap(text, 8, lines) == wrapped
    assert all(cell_len(line) <= 8 for line in wrapped.splitlines())


def test_fonts_that_are_there_stand_in_for_missing_letters(monkeypatch):
    before = list(matplotlib.rcParams["font.family"])
    installed = ["DejaVu Sans", "WenQuanYi Micro Hei", "Noto Sans Thai"]
    monkeypatch.setattr(font_manager, "get_font_names", lambda: installed)
    with use_fallback_fonts():
        assert matplotlib.rcParams["font.family"] == [*before, *installed[1:]]
    assert matplotlib.rcParams["font.family"] == before
