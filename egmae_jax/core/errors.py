"""Base classes of the errors that a user can fix."""

from collections.abc import Callable, Container, Sequence


class UserError(Exception):
    """Base class of errors that a user can fix; the message names the fault and a valid value.

    Commands print the message and end with status 1 (`console.user_errors`). All other exceptions
    are bugs of this program and keep their traceback.
    """


class ConfigError(UserError):
    """The config is invalid; the message names every wrong field."""


class MissingExtraError(UserError):
    """An optional library is missing or broken; the message tells how to install it."""


# Ends the message about an unknown name of something that users can register.
REGISTER = (
    "A name of your own needs its module: import it in the config file or by --import=MODULE."
)


def is_own(function: Callable) -> bool:
    """Whether a registered function is defined in this package, not in a user's file."""
    return str(getattr(function, "__module__", "")).startswith("egmae_jax.")


def require_free(name: str, own: Container[str], kind: str) -> None:
    """Raises ValueError if a name that is to be registered is one of the package's own.

    Args:
        name: the name.
        own: names that the package registers.
        kind: what has the name, such as 'network'.
    """
    if name in own:
        raise ValueError(f"egmae_jax has the {kind} {name!r}; register yours by another name.")


def shorten_list(names: Sequence[str], most: int = 10) -> str:
    """Joins names by commas; after the first `most` names gives the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
