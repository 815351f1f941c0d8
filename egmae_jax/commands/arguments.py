"""How the commands read their arguments: flags by argparse, configs by ml_collections.

`--config=FILE[:WORDS]` and `--config.FIELD=VALUE` are read by `config_flags`, among flags that
nothing else in the process sees. Mistakes end in a sentence.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from egmae_jax.core import console
from egmae_jax.core.errors import ConfigError
from egmae_jax.run import config_files, default_config
from egmae_jax.run.config import flatten


class _Format(argparse.HelpFormatter):
    """Fills each paragraph of a description by itself, and adds the default of each flag."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(x if x[0] == " " else fill(x, width, indent) for x in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = isinstance(action.default, int | float | str) and action.nargs != 0
        return f"{action.help or ''}{' (%(default)s if not given)' * has_default}"


class Parser(argparse.ArgumentParser):
    """The flags of a command, written --flag=value or --flag value."""

    def __init__(self, command: str, description: str | None):
        """Makes a parser without flags.

        Args:
            command: name of the command, as in `egmae COMMAND`.
            description: what the command does; its module's docstring.
        """
        super().__init__(
            prog=f"egmae {command}",
            description=description,
            formatter_class=_Format,
            allow_abbrev=False,
        )
        self._takes_config = False

    def add_config(self, example: str, *, required: bool = True) -> None:
        """Adds --config and its fields: `read` then gives `config` and `overrides` as well.

        `config` is None where --config is not given. `overrides` are the fields that are set on
        the command line, such as 'pretrain.epochs'.

        Args:
            example: a config file, for the help.
            required: whether --config must be given.
        """
        self._takes_config = True
        self.add_argument("--config", metavar="FILE[:WORDS]", required=required,
            help=f"config file, such as {example}, with words that change it; configs/... is "
            "looked for in the current folder, then in the package")  # fmt: skip
        self.add_argument("--config.FIELD", metavar="VALUE", dest="_field",
            help="sets a field of the config, such as --config.pretrain.epochs=100")  # fmt: skip

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Returns the values of the flags by name.

        Args:
            arguments: arguments of the command; None: those of the process.

        Raises:
            ConfigError: the config cannot be read.
        """
        options, others = self.parse_known_args(arguments)
        if self._takes_config:
            del options._field
            options.config, options.overrides, others = _read_config(options.config, others)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Ends the program with a sentence and status 2."""
        console.fail(f"{message}. See {self.prog} --help.", 2)


def round_index(text: str) -> int | Literal["all"]:
    """Reads the value of --round: the number of a round, or 'all'."""
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a round's number or 'all'")
    return int(text)


def _read_config(
    source: str | None, arguments: list[str]
) -> tuple[ConfigDict | None, frozenset[str], list[str]]:
    """Reads FILE[:WORDS] and the arguments that set fields.

    Returns:
        The config, the fields that are set, and the other arguments.
    """
    if source is None:
        return None, frozenset(), arguments
    path, colon, words = source.partition(":")
    file = config_files.locate(path)
    try:
        open(file, "rb").close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"The config file {path} cannot be read ({reason}).") from None
    argv = ["egmae", f"--config={file}{colon}{words}", *arguments]
    parsed = flags.FlagValues()
    parsed.set_gnu_getopt()  # fields may follow what is no flag
    config_flags.DEFINE_config_file("config", flag_values=parsed, sys_argv=argv)
    flag: Any = parsed["config"]
    try:
        _, *others = parsed(argv, known_only=True)
    except flags.Error as error:
        text = str(error).strip()
        if "get_config() takes 0 positional arguments" in text:
            raise ConfigError(f"The config file {path} takes no words behind a colon.") from None
        if "Error whilst parsing config file" in text:  # a fault of the file's own code
            raise
        raise ConfigError(text.splitlines()[-1]) from None
    except (AttributeError, KeyError, TypeError, OverflowError):
        explanation = explain_unknown_field(arguments, default_config.get_config())
        if explanation is None:
            raise
        raise ConfigError(explanation) from None
    return flag.value, frozenset(config_flags.get_override_values(flag)), others


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
