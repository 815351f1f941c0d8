"""`egmae COMMAND`: it finds the commands, and a mistake in its flags ends in a sentence."""

import importlib
import sys
import types

import pytest
from absl import flags

import egmae_jax
from egmae_jax import commands
from egmae_jax.commands import arguments
from egmae_jax.core.errors import ConfigError

CONFIG = """
from egmae_jax.run import default_config

def get_config(words=None):
    config = default_config.get_config()
    config.seed = 7 if words == "seven" else 0
    return config
"""


def exit_status(call, *values):
    with pytest.raises(SystemExit) as stop:
        call(*values)
    return stop.value.code


@pytest.fixture
def parser(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CONFIG)
    parser = arguments.Parser("train", "Trains.")
    parser.add_config("configs/busi.py")
    parser.add_argument("--workdir", default="w")
    parser.add_argument("--round", type=arguments.round_index)
    return parser


# --- Which command -------------------------------------------------------------------------------


def test_help_lists_every_command_in_a_line(capsys):
    assert commands.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in commands.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80


def test_the_version_is_the_packages(capsys):
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"egmae_jax {egmae_jax.__version__}\n"


def test_an_unknown_command_is_named(capsys):
    assert exit_status(commands.main, ["trian", "--workdir=w"]) == 2
    assert "'trian'" in capsys.readouterr().err


def test_a_command_gets_its_arguments_and_modules_of_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "module_of_the_users.py").touch()
    fake = types.SimpleNamespace(main=lambda names: importlib.import_module(names[0]) and 3)
    monkeypatch.setitem(sys.modules, "egmae_jax.commands.audit", fake)
    assert commands.main(["audit", "module_of_the_users"]) == 3


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_that_begins_with_a_sentence(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert exit_status(commands.main, [name, "--help"]) == 0
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: egmae {name} [-h]")
    assert description.endswith(".")


# --- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--config=mine.py:seven", "--config.data.dir=x", "--config.seed=8", "--workdir=y"],
        ["--config", "mine.py", "--config.data.dir", "x", "--config.seed", "8", "--workdir", "y"],
    ],
)
def test_a_flag_may_have_its_value_behind_it_or_follow_it(words, parser):
    known = set(flags.FLAGS)
    options = parser.read(words)
    assert (options.config.seed, options.config.data.dir, options.workdir) == (8, "x", "y")
    assert options.overrides == {"seed", "data.dir"}
    assert options.config.is_locked
    assert set(flags.FLAGS) == known  # no trace in the process


def test_a_value_may_look_like_a_flag_of_one_dash(parser):
    options = parser.read(["--config=mine.py", "--config.corruption.threshold", "-1.5"])
    assert options.config.corruption.threshold == -1.5


def test_fields_of_yes_or_no_need_no_value(parser):
    words = ["--config=mine.py:seven", "--noconfig.evaluation.report", "--config.data.deduplicate"]
    options = parser.read([*words, "--workdir", "y"])
    assert options.config.evaluation.report is False
    assert options.config.data.deduplicate is True
    assert (options.config.seed, options.workdir) == (7, "y")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=mine.py", "--workdri=x"], "unrecognized arguments: --workdri=x"),
        (["--config=mine.py", "x", "--config.seed=1"], "unrecognized arguments: x"),
        (["--config=mine.py", "--work=x"], "unrecognized arguments: --work=x"),
        (["--workdir=x"], "the following arguments are required: --config"),
        (
            ["--config=mine.py", "--round=x"],
            "argument --round: it is 'x'; it must be a round's number or 'all'",
        ),
        (["--config=mine.py", "--workdir"], "argument --workdir: expected one argument"),
    ],
)
def test_a_mistake_in_the_flags_ends_in_a_sentence(words, message, parser, capsys):
    assert exit_status(parser.read, words) == 2
    assert capsys.readouterr().err == f"Error: {message}. See egmae train --help.\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config=absent.py"], r"config file absent\.py cannot be read \(No such file"),
        (["--config=."], r"config file \. cannot be read \(Is a directory"),
        (["--config=mine.py", "--config.sed=1"], "no config field 'sed'. Did you mean 'seed'"),
        (["--config=mine.py", "--config.data.dir.x=5"], "field 'data.dir.x'. Did you mean 'data.d"),
        (["--config=mine.py", "--config.seed=x"], r"flag --config\.seed=x: invalid literal"),
    ],
)
def test_a_mistake_in_the_config_is_an_error_of_the_config(words, message, parser):
    with pytest.raises(ConfigError, match=message):
        parser.read(words)


def test_a_config_is_the_current_folders_before_the_packages(parser, tmp_path):
    assert parser.read(["--config=configs/busi.py"]).config.data.name == "busi"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "busi.py").write_text(CONFIG)
    assert parser.read(["--config=configs/busi.py:seven"]).config.seed == 7
    assert parser.read(["--config=configs/kvasir.py"]).config.data.name == "kvasir"
