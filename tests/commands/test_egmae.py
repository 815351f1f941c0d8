"""`egmae COMMAND`: it finds the commands, and a mistake in its flags ends in a sentence."""

import importlib
import sys
import types

import pytest

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


def ends(call, *given):
    with pytest.raises(SystemExit) as stop:
        call(*given)
    return stop.value.code


@pytest.fixture
def parser(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(CONFIG)
    made = arguments.Parser("train", "Trains.")
    made.add_config("configs/busi.py")
    made.add_argument("--workdir", default="w")
    made.add_argument("--images", nargs="+")
    made.add_switch("statistics", default=True, help="does not measure")
    return made


# --- Which command -------------------------------------------------------------------------------


def test_help_lists_every_command_in_a_line(capsys):
    assert commands.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in commands.COMMANDS:
        assert sum(line.startswith(f"  {name} ") for line in lines) == 1
    assert max(map(len, lines)) <= 80
    assert commands.main([]) == 0


def test_the_version_is_the_packages(capsys):
    assert commands.main(["--version"]) == 0
    assert capsys.readouterr().out == f"egmae_jax {egmae_jax.__version__}\n"


def test_an_unknown_command_is_told_with_the_nearest(capsys):
    assert ends(commands.main, ["trian", "--workdir=w"]) == 2
    said = "Error: There is no command 'trian'. Did you mean 'train'? See egmae --help.\n"
    assert capsys.readouterr().err == said


def test_a_command_gets_its_arguments_and_modules_of_the_current_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "module_of_the_users.py").touch()
    fake = types.SimpleNamespace(main=lambda given: importlib.import_module(given[0]) and 3)
    monkeypatch.setitem(sys.modules, "egmae_jax.commands.audit", fake)
    assert commands.main(["audit", "module_of_the_users"]) == 3


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_help_that_begins_with_a_sentence(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert ends(commands.main, [name, "--help"]) == 0
    usage, description, *_ = capsys.readouterr().out.split("\n\n")
    assert usage.startswith(f"usage: egmae {name} [-h]")
    assert description.endswith(".")


# --- Flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        ["--config=mine.py:seven", "--config.data.dir=x", "--config.seed=8", "--workdir=y"],
        ["--config", "mine.py:seven", "--config.data.dir", "x", "--config.seed", "8",
         "--workdir", "y"],
        ["--workdir=y", "-config.seed", "8", "--config.data.dir=x", "--config=mine.py"],
    ],
)  # fmt: skip
def test_a_flag_may_have_its_value_behind_it_or_follow_it(given, parser):
    options = parser.read(given)
    assert (options.config.seed, options.config.data.dir, options.workdir) == (8, "x", "y")
    assert options.overrides == {"seed", "data.dir"}
    assert options.config.is_locked


def test_a_value_may_look_like_a_flag_of_one_dash(parser):
    options = parser.read(["--config=mine.py", "--config.corruption.threshold", "-1.5"])
    assert options.config.corruption.threshold == -1.5


def test_fields_of_yes_or_no_need_no_value(parser):
    options = parser.read(
        ["--config=mine.py", "--noconfig.evaluation.report", "--config.data.deduplicate",
         "--images", "a.png", "b.png"]
    )  # fmt: skip
    assert options.config.evaluation.report is False
    assert options.config.data.deduplicate is True
    assert options.images == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("given", "value"), [([], True), (["--nostatistics"], False), (["--statistics"], True)]
)
def test_a_switch_has_both_forms(given, value, parser):
    assert parser.read(["--config=mine.py", *given]).statistics is value


def test_flags_of_a_config_leave_no_trace_in_the_process(parser):
    from absl import flags

    known = set(flags.FLAGS)
    assert parser.read(["--config=mine.py", "--config.seed=1"]).config.seed == 1
    assert parser.read(["--config=mine.py"]).config.seed == 0
    assert set(flags.FLAGS) == known


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--config=mine.py", "--workdri=x"],
            "There is no flag --workdri. Did you mean --workdir?",
        ),
        (["--config=mine.py", "x", "y"], "What is 'x y'? Flags begin with --."),
        (["--config=mine.py", "--work=x"], "There is no flag --work. Did you mean --workdir?"),
        (["--workdir=x"], "the following arguments are required: --config."),
        (["--config=mine.py", "--workdir"], "argument --workdir: expected one argument."),
    ],
)
def test_a_mistake_in_the_flags_ends_in_a_sentence(given, said, parser, capsys):
    assert ends(parser.read, given) == 2
    assert capsys.readouterr().err == f"Error: {said} See egmae train --help.\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--config=absent.py"], r"There is no config file absent\.py that can be read"),
        (["--config=."], r"There is no config file \. that can be read"),
        (["--config=mine.py", "--config.sed=1"], "no config field 'sed'. Did you mean 'seed'"),
        (["--config=mine.py", "--config.seed=x"], r"flag --config\.seed=x: invalid literal"),
        (["--config=mine.py", "--config.data.deduplicate", "x"], "What is 'x'"),
    ],
)
def test_a_mistake_in_the_config_is_an_error_of_the_config(given, said, parser):
    with pytest.raises(ConfigError, match=said):
        parser.read(given)


def test_a_config_is_the_current_folders_before_the_packages(parser, tmp_path):
    assert parser.read(["--config=configs/busi.py"]).config.data.name == "busi"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "busi.py").write_text(CONFIG)
    assert parser.read(["--config=configs/busi.py:seven"]).config.seed == 7
    assert parser.read(["--config=configs/kvasir.py"]).config.data.name == "kvasir"
