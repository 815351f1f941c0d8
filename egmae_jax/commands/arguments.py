"""Reads the arguments of commands: flags with argparse, configs with ml_collections.

`--config=FILE[:WORDS]` and `--config.FIELD=VALUE` are read by `config_flags` with flags of its own,
so the global absl flags do not change. Wrong arguments end the program with an error message.
"""

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from absl import flags
from ml_collections import ConfigDict, config_flags

from egmae_jax.core import console
from egmae_jax.core.errors import ConfigError
from egmae_jax.run import config_files, default_config, workdir
from egmae_jax.run.config import flatten


class _Format(argparse.HelpFormatter):
    """Wraps each paragraph of a description separately, and shows the default of each flag."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(x if x[0] == " " else fill(x, width, indent) for x in paragraphs)

    def _get_help_string(self, action: argparse.Action) -> str:
        has_default = isinstance(action.default, int | float | str) and action.nargs != 0
        return f"{action.help or ''}{' (default: %(default)s)' * has_default}"


class Parser(argparse.ArgumentParser):
    """Parser of the flags of a command, which are written --flag=value or --flag value."""

    def __init__(self, command: str, description: str | None):
        """Creates a parser without flags.

        Args:
            command: name of the command, as in `egmae COMMAND`.
            description: description for the help, the docstring of the command's module.
        """
        super().__init__(
            prog=f"egmae {command}",
            description=description,
            formatter_class=_Format,
            allow_abbrev=False,
        )

    def add_config(self, example: str, *, required: bool = True) -> None:
        """Adds --config and --config.FIELD, so that `read` also returns `config` and `overrides`.

        `config` is the ConfigDict, or None without --config. `overrides` is the frozenset of fields
        that are set on the command line, such as 'pretrain.epochs'.

        Args:
            example: path of a config file, for the help.
            required: whether --config is required.
        """
        self.add_argument("--config", metavar="FILE[:WORDS]", required=required,
            help=f"config file, such as {example}, with optional words that modify it; "
            "configs/... is looked up in the current folder, then in the package")  # fmt: skip
        self.add_argument("--config.FIELD", metavar="VALUE", dest="config",
            help="sets a field of the config, such as --config.pretrain.epochs=100")  # fmt: skip
        self.add_import()

    def add_import(self) -> None:
        """Adds --import, for modules that `read` imports before it returns."""
        self.add_argument("--import", action="append", default=[], dest="modules", metavar="MODULE",
            help="module of yours that registers a network, a corruption, an augmentation, a data "
            "set or a metric of the run; may be repeated")  # fmt: skip

    def read(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Parses the arguments and returns the values of the flags by name.

        Wrong flags end the program with status 2.

        Args:
            arguments: arguments of the command; None uses those of the process.

        Raises:
            ConfigError: a module or the config file cannot be read, or a field is unknown or has a
                wrong value.
        """
        options, others = self.parse_known_args(arguments)
        for name in vars(options).pop("modules", ()):
            _import(name)
        if "config" in options:
            options.config, options.overrides, others = _read_config(options.config, others)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options

    def error(self, message: str) -> NoReturn:
        """Prints an error message and ends the program with status 2."""
        console.fail(f"{message}. See {self.prog} --help.", 2)


def _import(name: str) -> None:
    """Imports a module of the user's; raises ConfigError if there is none or it imports none."""
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--import={name}: {error}. It must be the name of a module, such as small for "
            "small.py; Python looks for it in the current folder and in PYTHONPATH."
        ) from None


def local_path(text: str) -> Path:
    """Parses the path of a file or folder, see `workdir.local_path`.

    Raises:
        ArgumentTypeError: the path is the address of a bucket.
    """
    try:
        return workdir.local_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None


def round_index(text: str) -> int | Literal["all"]:
    """Parses the value of --round, the index of a round or 'all'.

    Raises:
        ArgumentTypeError: the value is neither.
    """
    if text == "all":
        return "all"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a round's number or 'all'")
    return int(text)


def positive(text: str) -> int:
    """Parses a whole number of at least 1.

    Raises:
        ArgumentTypeError: the value is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"it is {text!r}; it must be a whole number from 1")
    return int(text)


def _read_config(
    source: str | None, arguments: list[str]
) -> tuple[ConfigDict | None, frozenset[str], list[str]]:
    """Reads the config file and applies the arguments that set its fields.

    Args:
        source: value of --config, FILE[:WORDS]; None if it was not given.
        arguments: all arguments except --config.

    Returns:
        The config (None without a source), the names of the fields that were set, and the
        remaining arguments.

    Raises:
        ConfigError: the file cannot be read, or a field is unknown or has a wrong value.
    """
    if source is None:
        return None, frozenset(), arguments
    path, colon, words = source.partition(":")
    file = config_files.locate(path)
    try:
        open(file, "rb").close()
    except OSError as error:
        reason = error.strerror or str(error)
        nearest = difflib.get_close_matches(Path(path).stem, config_files.names(), n=1)
        hint = f" Did you mean configs/{nearest[0]}.py?" if nearest else ""
        raise ConfigError(f"The config file {path} cannot be read ({reason}).{hint}") from None
    sys.path.append(str(Path(file).parent.absolute()))  # a config may import modules beside it
    argv = ["egmae", f"--config={file}{colon}{words}", *arguments]
    parsed = flags.FlagValues()
    parsed.set_gnu_getopt()  # accepts fields after positional arguments
    config_flags.DEFINE_config_file("config", flag_values=parsed, sys_argv=argv)
    flag: Any = parsed["config"]
    try:
        _, *others = parsed(argv, known_only=True)
    except flags.Error as error:
        text = str(error).strip()
        if "get_config() takes 0 positional arguments" in text:
            raise ConfigError(
                f"The config file {path} accepts no words after a colon; give --config={path}."
            ) from None
        if "Error whilst parsing config file" in text:  # an error in the code of the file
            raise
        raise ConfigError(text.splitlines()[-1]) from None
    except (AttributeError, KeyError, TypeError, OverflowError):
        explanation = explain_unknown_field(arguments, default_config.get_config())
        if explanation is None:
            raise
        raise ConfigError(explanation) from None
    return flag.value, frozenset(config_flags.get_override_values(flag)), others


def explain_unknown_field(arguments: Sequence[str], config: ConfigDict) -> str | None:
    """Explains which of the flags --config.a.b=... names an unknown field.

    Args:
        arguments: arguments of the command.
        config: a config with all fields.

    Returns:
        A sentence that names the unknown field and the most similar known field; None if all fields
        are known.
    """
    fields = list(flatten(config))
    for argument in arguments:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match and match[1] not in fields:
            nearest = difflib.get_close_matches(match[1], fields, n=1, cutoff=0.0)[0]
            return f"There is no config field {match[1]!r}. Did you mean {nearest!r}?"
    return None
