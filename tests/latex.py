"""As much of TeX as a table needs: what a reader would see of it, or an assertion that fails."""

import re

# What may stand between braces or behind a backslash, and the sign it prints.
_SYMBOLS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\symbol{34}": '"',
    r"\symbol{96}": "`",
    r"$\pm$": "±",
    **{"\\" + sign: sign for sign in "_&%$#{}"},
}
_TOKEN = re.compile(
    "|".join(re.escape(x) for x in sorted(_SYMBOLS, key=len, reverse=True))
    + r"|(?P<command>\\(?:textbf|textit|footnotesize|raggedright|par)\b ?)"
    + r"|(?P<group>[{}])|(?P<letter>[^\\~^_&%$#{}<>|\"`])"
)
_LIGATURES = ("--", "''", ",,", "``", "?`", "!`", "<<", ">>")


def shown(source: str) -> str:
    """What is printed of text without line breaks of its own; bold and sizes are passed over.

    Every character that TeX takes for something else must be written as a command, braces must be
    in pairs, and no two letters may run into another sign.
    """
    text, depth, place = [], 0, 0
    letters = re.sub("|".join(re.escape(x) for x in _SYMBOLS), "\0", source)
    assert not [x for x in _LIGATURES if x in letters], source
    while place < len(source):
        token = _TOKEN.match(source, place)
        assert token, f"TeX takes this for a command: {source[place : place + 30]!r}"
        place = token.end()
        if token["group"]:
            depth += 1 if token["group"] == "{" else -1
            assert depth >= 0, source
        elif token["letter"]:
            text.append(token["letter"])
        elif not token["command"]:
            text.append(_SYMBOLS[token[0]])
    assert depth == 0, source
    return "".join(text)
