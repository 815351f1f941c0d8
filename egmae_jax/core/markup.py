"""Escapes class and folder names for Markdown and LaTeX."""

import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!$@:])")
# A special character, or the first of two that LaTeX merges, such as two hyphens into a dash.
_LATEX = re.compile(r"""[\\~^<>|"`\[\]*±_&%$#{}]|([-',])(?=\1)""")
# Some fonts lack <, > and |; a * or [ after \\ is read as its argument; " is a command in some
# languages. The numbers of \symbol are character codes.
_LATEX_COMMANDS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "`": r"\symbol{96}",
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "±": r"$\pm$",
}


def printable(value: str) -> str:
    """Returns the text on one line, with each run of whitespace and invisible signs as one space.

    Invisible are the characters that Python does not call printable.
    """
    return " ".join("".join(x if x.isprintable() else " " for x in value).split())


def markdown(value: str) -> str:
    """Escapes a text for Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", printable(value))


def latex(value: str) -> str:
    """Escapes a text for LaTeX, on one line; the result needs no package.

    Letters that the document's font lacks are not replaced.
    """
    return _LATEX.sub(_escape_latex, printable(value))


def _escape_latex(match: re.Match[str]) -> str:
    character = match[0]
    if match[1]:
        return character + "{}"
    return _LATEX_COMMANDS.get(character, "\\" + character)
