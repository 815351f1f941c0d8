"""Names that mean something to Markdown and TeX."""

import markdown_it
from hypothesis import example, given
from hypothesis import strategies as st

from egmae_jax.core import markup
from tests import latex

SPECIAL = "_ & % $ # { } ~ ^ \\ < > | \" ` [ ] * ± -- ''' ,, ?` @ : ! $x^2$ \\input{x} %"
ANY = st.text() | st.text("\\_&%$#{}~^<>|\"`[]*±-',?!:@ a0\n")


@given(ANY)
@example(SPECIAL)
@example("a\nb\t\x00\x1b[31m\u202e\u2028 c\udcff")
def test_latex_shows_a_text_as_it_is(text):
    source = markup.latex(text)
    assert latex.shown(source) == markup.printable(text)
    assert "\n" not in source
    source.encode()  # no half characters, which file names can have


def test_latex_is_what_one_would_write():
    assert markup.latex("50 % of a_b & {c}#1 $") == r"50 \% of a\_b \& \{c\}\#1 \$"
    assert markup.latex(r"~^\ --- [x]*") == (
        r"\textasciitilde{}\textasciicircum{}\textbackslash{} -{}-{}- {[}x{]}{*}"
    )
    assert markup.latex("convnext_tiny, mae-2") == r"convnext\_tiny, mae-2"


@given(ANY)
@example(SPECIAL)
@example("x\n---\n# y")
def test_markdown_shows_a_text_as_it_is(text):
    (_, inline, _) = markdown_it.MarkdownIt("commonmark").parse("x" + markup.markdown(text))
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == "x" + markup.printable(text)


@given(ANY)
def test_what_is_printable_is_one_line_of_what_one_sees(text):
    line = markup.printable(text)
    assert line.isprintable()
    assert line == line.strip()
    assert "  " not in line
    assert "".join(line.split()) == "".join(x for x in text if x.isprintable() and x != " ")
