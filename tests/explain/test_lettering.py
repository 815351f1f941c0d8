"""Names in figures: how they are wrapped, and in which fonts."""

import matplotlib
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure

from egmae_jax.explain.lettering import columns, fonts_of_all_letters, wrap


@pytest.mark.parametrize(
    ("text", "lines", "wrapped"),
    [
        ("polyp", 2, "polyp"),
        ("", 2, ""),
        ("dyed-lifted polyps", 2, "dyed-\nlifted\u2026"),
        ("one two three", 3, "one two\nthree"),
        ("abcdefghijkl", 2, "abcdefgh\nijkl"),
        ("abcdefghijklmnopqrst", 2, "abcdefgh\nijklmno\u2026"),
        ("abcdefghi", 1, "abcdefg\u2026"),
        ("良性腫瘍", 1, "良性腫瘍"),  # each two columns wide
        ("良性腫瘍の所見", 2, "良性腫瘍\nの所見"),
        ("良性_4_an image", 3, "良性_4_a\nn image"),
        ("良性 an image", 3, "良性 an\nimage"),
        ("a\nb", 2, "a\nb"),
    ],
)
def test_names_are_wrapped_to_eight_columns(text, lines, wrapped):
    assert wrap(text, 8, lines) == wrapped
    assert all(columns(line) <= 8 for line in wrapped.splitlines())


def test_a_combining_mark_is_no_column():
    assert columns("e\u0301") == columns("é") == 1


def test_fonts_that_are_there_stand_in_for_missing_letters(monkeypatch, recwarn):
    before = list(matplotlib.rcParams["font.family"])
    own, cjk = "DejaVu Sans", "WenQuanYi Micro Hei"
    monkeypatch.setattr(font_manager, "get_font_names", lambda: [own, cjk, "Noto Sans Thai"])
    with fonts_of_all_letters():
        assert matplotlib.rcParams["font.family"] == [*before, cjk, "Noto Sans Thai"]
    assert matplotlib.rcParams["font.family"] == before
    monkeypatch.undo()
    with fonts_of_all_letters():
        drawn = len(matplotlib.rcParams["font.family"]) > len(before)
        figure = Figure()
        figure.text(0, 0, "良性")
    figure.canvas.draw()
    missing = [x for x in recwarn if "missing from font" in str(x.message)]
    if drawn and set(matplotlib.font_manager.get_font_names()) & {cjk, "Noto Sans CJK JP"}:
        assert not missing
