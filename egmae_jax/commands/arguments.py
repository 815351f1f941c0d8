"""How the commands read their arguments: flags by argparse, configs by ml_collections.

`--config=FILE[:WORDS]` and `--config.FIELD=VALUE` are read by `config_flags`, among flags that
nothing else in the process sees. What is wrong ends in a sentence.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from egmae_jax.core import console
from egmae_jax.core.errors import ConfigError
from egmae_jax.run import config_files, default_config
from egmae_jax.run.config import flatten

_OVERRIDE = re.compile(r"--?(?P<no>no)?config\.[^=]*(?P<value>=.*)?", re.DOTALL)


class _Format(argparse.HelpFormatter):
    """Fills each paragraph of a description by itself, and tells what a flag is if not given."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(x if x[0] == " " else fill(x, width, indent) for x in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = isinstance(action.default, int | float | str) and action.nargs != 0
        return f"{action.help or ''}{' (%(default)s if not given)' * shown}"


class Parser(argparse.ArgumentParser):
    """The flags of a command, written --flag=value or --flag value."""

    def __init__(self, command: str, description: str | None):
        """Makes one without flags.

        Args:
            command: as in `egmae COMMAND`.
            description: what it does, the command's docstring.
        """
        super().__init__(
            prog=f"egmae {command}",
            description=description,
            formatter_class=_Format,
            allow_abbrev=False,
        )
        self._takes_config = False

    def add_config(self, example: str, *, required: bool = True) -> None:
        """Takes --config and its fields: `read` then gives `config` and `overrides` as well.

        `config` is None where it is not given. `overrides` are the fields that are set on the
        command line, such as 'pretrain.epochs'.

        Args:
            example: of a file.
            required: whether the command needs one.
        """
        self._takes_config = True
        self.add_argument("--config", metavar="FILE[:WORDS]", required=required,
            help=f"config file, such as {example}, with words that change it; configs/... is "
            "looked for in the current folder, then in the package")  # fmt: skip
        self.add_argument("--config.FIELD", metavar="VALUE", dest="_field",
            help="sets a field of the config, such as --config.pretrain.epochs=100")  # fmt: skip

    def add_switch(self, name: str, *, default: bool, help: str) -> None:
        """Takes --name and --noname, of which help has the one that changes something."""
        for text, value in ((f"--{name}", True), (f"--no{name}", False)):
            self.add_argument(
                text,
                action="store_true" if value else "store_false",
                dest=name,
                default=default,
                help=argparse.SUPPRESS if value == default else help,
            )

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The values of the flags by name; of the process where no arguments are given.

        Raises:
            ConfigError: the config cannot be read.
        """
        given = sys.argv[1:] if arguments is None else list(arguments)
        overrides, others = _split(given) if self._takes_config else ([], given)
        options, unknown = self.parse_known_args(others)
        if unknown:
            self._refuse(unknown)
        if self._takes_config:
            del options._field
            options.config, options.overrides = _read_config(options.config, overrides)
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the program with a sentence and status 2."""
        self._fail(f"{message}.")

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        flag = next((word for word in unknown if re.match(r"--?[a-zA-Z]", word)), None)
        if flag is None:
            self._fail(f"What is {' '.join(unknown)!r}? Flags begin with --.")
        flag = flag.partition("=")[0]
        known = [name for name in self._option_string_actions if name.startswith("--")]
        nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.0)[0]
        self._fail(f"There is no flag {flag}. Did you mean {nearest}?")

    def _fail(self, message: str) -> NoReturn:
        console.fail(f"{message} See {self.prog} --help.", 2)


def round_index(text: str) -> int | Literal["all"]:
    """What --round says; whoever takes it refuses any other text."""
    return int(text) if text.isdecimal() else text  # type: ignore[return-value]


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts the arguments into those that set fields of the config, with values, and the others."""
    overrides: list[str] = []
    others: list[str] = []
    rest = list(arguments)
    while rest:
        match = _OVERRIDE.fullmatch(rest[0])
        value_follows = match and not match["no"] and match["value"] is None
        count = 2 if value_follows and rest[1:] and not rest[1].startswith("--") else 1
        (overrides if match else others).extend(rest[:count])
        del rest[:count]
    return overrides, others


def _read_config(
    given: str | None, overrides: Sequence[str]
) -> tuple[ConfigDict | None, frozenset[str]]:
    """The config of FILE[:WORDS], and the fields that are set."""
    if given is None:
        if overrides:
            raise ConfigError(f"{overrides[0]} sets a field of a config, but there is no --config.")
        return None, frozenset()
    path, colon, words = given.partition(":")
    argv = ["egmae", f"--config={config_files.locate(path)}{colon}{words}", *overrides]
    parsed = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=parsed, sys_argv=argv)
    flag: Any = parsed["config"]
    try:
        _, *others = parsed(argv)
        flag.value.to_dict()  # a file that is missing is only noticed on use
    except flags.Error as error:
        text = str(error).strip()
        if "get_config() takes 0 positional arguments" in text:
            raise ConfigError(f"The config file {path} takes no words behind a colon.") from None
        if "Error whilst parsing config file" in text:  # it raised what is no error of the user's
            raise
        raise ConfigError(text.splitlines()[-1]) from None
    except OSError:
        if os.access(config_files.locate(path), os.R_OK) and not os.path.isdir(path):
            raise  # what the file itself opens
        raise ConfigError(f"There is no config file {path} that can be read.") from None
    except (AttributeError, KeyError, TypeError, OverflowError):
        explanation = explain_unknown_field(overrides, default_config.get_config())
        if explanation is None:
            raise
        raise ConfigError(explanation) from None
    if others:
        raise ConfigError(f"What is {' '.join(others)!r}? It follows a field that takes no value.")
    return flag.value, frozenset(config_flags.get_override_values(flag))


def explain_unknown_field(arguments: Sequence[str], config: ConfigDict) -> str | None:
    """Says which of the flags --config.a.b=... names no field, and what the nearest field is.

    Returns:
        A sentence; None where every flag names a field.
    """
    fields = list(flatten(config))
    for argument in arguments:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in fields:
            nearest = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.0)[0]
            return f"There is no config field {match[1]!r}. Did you mean {nearest!r}?"
    return None
