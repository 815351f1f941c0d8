"""Registry of things by name: those of the package, and those that a user's module adds."""

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from egmae_jax.core.errors import ConfigError

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Entries of one kind by name.

    Attributes:
        kind: what the entries are, such as 'network', for messages.
        entries: entries by name, in the order of registration.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.entries: dict[str, Entry] = {}
        self._own: frozenset[str] = frozenset()

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Returns a decorator that adds an entry; a later one of a user replaces an earlier one.

        Raises:
            ValueError: the package has an entry of this name.
        """
        if name in self._own:
            raise ValueError(
                f"egmae_jax has the {self.kind} {name!r}; register yours by another name."
            )

        def add(entry: Entry) -> Entry:
            self.entries[name] = entry
            return entry

        return add

    def reserve(self) -> None:
        """Makes the names registered so far those of the package, which nobody can replace."""
        self._own = frozenset(self.entries)

    def is_own(self, name: str) -> bool:
        """Whether an entry is one of the package's, not a user's."""
        return name in self._own

    def names(self) -> tuple[str, ...]:
        """Returns all names in the order of registration."""
        return tuple(self.entries)

    def get(self, name: str) -> Entry:
        """Returns the entry of a name.

        Raises:
            ConfigError: there is none; the message suggests a similar name.
        """
        if name in self.entries:
            return self.entries[name]
        nearest = difflib.get_close_matches(name, self.entries, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(
            f"There is no {self.kind} {name!r}.{hint} Known: {', '.join(self.entries)}. A name of "
            "your own needs its module: import it in the config file or by --import=MODULE."
        )
