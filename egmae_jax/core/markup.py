"""Text that stays text in Markdown and LaTeX, whatever people call their classes and folders."""

import re

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~&!$@:])")
# A character, or one that makes another sign with the next, such as a dash of two hyphens.
_LATEX = re.compile(r"""[\\~^<>|"`\[\]*±_&%$#{}]|([-',])(?=\1)""")
# Not all fonts have the signs of <, > and |, a * or [ can belong to the \\ before it, and " is a
# command in some languages. Digits are the place in the font.
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
    """The text on one line, without what cannot be seen."""
    return " ".join("".join(x if x.isprintable() else " " for x in value).split())


def markdown(value: str) -> str:
    """Markdown that shows a text as it is, on one line."""
    return _MARKDOWN.sub(r"\\\1", printable(value))


def latex(value: str) -> str:
    """LaTeX that shows a text as it is, on one line; it needs no package.

    Letters beyond those of the document's font are for the document to declare.
    """
    return _LATEX.sub(_latex_of, printable(value))


def _latex_of(match: re.Match[str]) -> str:
    sign = match[0]
    if match[1]:
        return sign + "{}"
    return _LATEX_COMMANDS.get(sign, "\\" + sign)
