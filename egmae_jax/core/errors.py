"""Base classes of the errors that a user can fix."""

from collections.abc import Sequence


class UserError(Exception):
    """Base class of errors that a user can fix; the message names the fault and a valid value.

    Commands print the message and end with status 1 (`console.user_errors`). All other exceptions
    are bugs of this program and keep their traceback.
    """


class ConfigError(UserError):
    """The config is invalid; the message names every wrong field."""


class MissingExtraError(UserError):
    """An optional library is missing or broken; the message tells how to install it."""


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Joins names by commas; after the first `most` names gives the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
