"""`egmae COMMAND`: it finds the commands, and a mistake in its flags ends in a sentence."""

import importlib
import re
import sys
import types

import pytest
from absl import flags

import egmae_jax
from egmae_jax import commands
from egmae_jax.commands import arguments
from egmae_jax.core import console
from egmae_jax.core.errors import ConfigError
from egmae_jax.core.files import write_json
from egmae_jax.models import registry
from egmae_jax.run import default_config

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
    assert "'trian'. Did you mean 'train'?" in capsys.readouterr().err


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


def test_a_run_whose_network_is_the_users_own_is_read_once_its_module_is_imported(
    monkeypatch, tmp_path, capsys
):
    network = """
import functools
from egmae_jax.models import register, squeezenet
register("users_own", functools.partial(squeezenet.SqueezeNet, "1_1"))
"""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry.NETWORKS, "entries", dict(registry.NETWORKS.entries))
    monkeypatch.setattr(console, "set_up_logging", lambda: None)
    (tmp_path / "users_network.py").write_text(network)
    config = default_config.get_config()
    config.branches = ("users_own",)
    write_json(tmp_path / "run" / "config.json", config.to_dict())
    command = ["export", "--workdir=run", "--out=exported"]
    for flags_, message in (
        ([], "There is no model 'users_own'.* A name of your own needs its module"),
        (["--import=users_netwrok"], "--import=users_netwrok: No module named 'users_netwrok'"),
        (["--import=users_network"], "the run has not been evaluated"),
    ):
        assert exit_status(commands.main, [*command, *flags_]) == 1
        assert re.search(message, capsys.readouterr().err)


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


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_the_home_folder_is_meant_by_its_sign_in_every_path(name, monkeypatch):
    parsers = []
    monkeypatch.setattr(arguments.Parser, "read", lambda self, _: sys.exit(parsers.append(self)))
    exit_status(commands.main, [name])
    (parser,) = parsers
    for action in parser._actions:
        if action.dest == "folder" or str(action.metavar) in ("FOLDER", "FILE", "FOLDER|FILE"):
            assert action.type is arguments.local_path, action.dest


def test_a_path_may_begin_with_the_home_folder_and_is_no_bucket(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = arguments.Parser("report", "Reports.")
    parser.add_argument("--out", type=arguments.local_path)
    assert parser.read(["--out=~/r.html"]).out == tmp_path / "r.html"
    assert exit_status(parser.read, ["--out=gs://bucket/r.html"]) == 2
    assert "argument --out: gs://bucket/r.html is not on this machine" in capsys.readouterr().err


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
        (["--config=configs/buis.py"], r"Did you mean configs/busi\.py\?"),
        (["--config=."], r"config file \. cannot be read \(Is a directory"),
        (["--config=mine.py", "--config.sed=1"], "no config field 'sed'. Did you mean 'seed'"),
        (["--config=mine.py", "--config.data.dir.x=5"], "field 'data.dir.x'. Did you mean 'data.d"),
        (["--config=mine.py", "--config.seed=x"], r"flag --config\.seed=x: invalid literal"),
    ],
)
def test_a_mistake_in_the_config_is_an_error_of_the_config(words, message, parser):
    with pytest.raises(ConfigError, match=message):
        parser.read(words)


def test_a_config_may_import_modules_beside_it(parser, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "beside_a_config.py").touch()
    (tmp_path / "elsewhere" / "mine.py").write_text("import beside_a_config\n" + CONFIG)
    assert parser.read(["--config=elsewhere/mine.py:seven"]).config.seed == 7


def test_a_config_is_the_current_folders_before_the_packages(parser, tmp_path):
    assert parser.read(["--config=configs/busi.py"]).config.data.name == "busi"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "busi.py").write_text(CONFIG)
    assert parser.read(["--config=configs/busi.py:seven"]).config.seed == 7
    assert parser.read(["--config=configs/kvasir.py"]).config.data.name == "kvasir"
