"""The base of every error that a user can mend, and what several modules' errors share."""

from collections.abc import Sequence


class UserError(Exception):
    """What was given cannot be used: the message says what was found and what would be right.

    Commands print the message of such an error and end with status 1 (`console.user_errors`).
    Every other exception is a fault of this program and keeps its traceback.
    """


class ConfigError(UserError):
    """The config cannot be run; the message names every field that is wrong."""


class MissingExtraError(UserError):
    """A library is not there, or does not work; the message says which and how to get it."""


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Names joined by commas: the first ten, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
