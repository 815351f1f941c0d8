"""SIGTERM and Ctrl-C: what is saved, and where the same command goes on.

Several hosts are in test_scale.py.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from egmae_jax.core import console, hosts, preemption
from egmae_jax.training.checkpoint import Checkpoints
from tests import tiny
from tests.training import toy

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture
def handled(monkeypatch):
    """Signals as main.py has them."""
    monkeypatch.setattr(preemption, "_state", preemption._State())
    undo = preemption.install()
    yield
    undo()


def test_a_signal_saves_the_steps_done_and_the_same_call_goes_on(tmp_path, handled, monkeypatch):
    expected, _ = toy.train(tmp_path / "whole")

    def evaluate(variables):
        os.kill(os.getpid(), signal.SIGTERM)
        return toy.score(variables)

    with pytest.raises(preemption.Preempted) as stop:
        toy.train(tmp_path / "run", save_seconds=1e9, evaluate=evaluate)
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        (step,) = checkpoints.steps  # of five an epoch
    assert step == 5
    assert stop.value.status == 128 + signal.SIGTERM
    assert str(stop.value) == (
        "by SIGTERM: the same command resumes from step 5 of 20 of test, round 0."
    )
    monkeypatch.setattr(preemption, "_state", preemption._State())
    state, _ = toy.train(tmp_path / "run")
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert toy.read_rows(tmp_path / "run") == toy.read_rows(tmp_path / "whole")


def test_a_signal_in_the_last_step_stops_as_well_and_loses_nothing(tmp_path, handled, monkeypatch):
    expected, best = toy.train(tmp_path / "whole")
    asked = []

    def evaluate(variables):
        asked.append(variables)
        if len(asked) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return toy.score(variables)

    with pytest.raises(preemption.Preempted, match="step 20 of 20"):
        toy.train(tmp_path / "run", save_seconds=1e9, evaluate=evaluate)
    monkeypatch.setattr(preemption, "_state", preemption._State())
    state, resumed = toy.train(tmp_path / "run")
    assert np.array_equal(state.params["w"], expected.params["w"])
    assert np.array_equal(best.variables["params"]["w"], resumed.variables["params"]["w"])
    assert toy.read_rows(tmp_path / "run") == toy.read_rows(tmp_path / "whole")


@pytest.mark.parametrize("of_which", [2, 5])  # in the middle; when the last step is done
def test_a_signal_to_another_host_stops_this_one_alike(tmp_path, handled, monkeypatch, of_which):
    expected, _ = toy.train(tmp_path / "whole", epochs=2)
    calls = []

    def agree(*values):  # as in a run whose other host got SIGTERM
        calls.append(values)
        number = 15 if len(calls) == of_which else 0
        return (number,) if len(values) == 1 else (4, number, values[2])

    with monkeypatch.context() as patch:
        patch.setattr(hosts, "agree", agree)
        with pytest.raises(preemption.Preempted, match=r"by SIGTERM: .* resumes from step") as stop:
            toy.train(tmp_path / "run", epochs=2, save_seconds=1e9)
    assert stop.value.status == 143
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        assert checkpoints.steps == [{2: 5, 5: 10}[of_which]]
    monkeypatch.setattr(preemption, "_state", preemption._State())
    state, _ = toy.train(tmp_path / "run", epochs=2)
    assert np.array_equal(state.params["w"], expected.params["w"])


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_training_a_signal_ends_what_is_under_way(handled, number):
    preemption.set_resume_point("the evaluation")
    with pytest.raises(preemption.Preempted, match="resumes from the evaluation"):
        os.kill(os.getpid(), number)


def test_what_had_the_signals_before_has_them_again():
    before = [signal.getsignal(number) for number in SIGNALS]
    undo = preemption.install()
    preemption.install()
    undo()
    preemption.install()()
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_commands_without_a_checkpoint_end_in_a_sentence_too(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # off in a shell's background

    @console.user_errors()
    def command():
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as end:
        command()
    signal.signal(signal.SIGINT, before)
    assert end.value.code == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C before it was finished.\n"


# As a process of its own, with the signals of a terminal

TRAINING = """
import sys, time
from pathlib import Path
from egmae_jax.core import console, hosts, preemption, sharding
from tests.training import toy
console.set_up_logging()
preemption.install()
folder, where, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def wait(place):
    if place == where:
        (folder / "there").touch()
        until = time.monotonic() + seconds
        while time.monotonic() < until:  # as long as its steps take, whatever signals come
            time.sleep(0.01)

def evaluate(variables):
    wait("evaluating")
    return toy.score(variables)

def step(*arguments):
    wait("compiling")
    return toy.fit_step(*arguments)

try:
    toy.train(folder, step=step, evaluate=evaluate, save_seconds=1e9, epochs=50)
except preemption.Preempted as stop:
    stop.exit()
print("complete")
"""


def interrupt(folder, where, *numbers, seconds=60.0, pause=0.0):
    """Sends signals to a training that is there; its status and all it says."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINING, str(folder), where, str(seconds)],
        env=tiny.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (folder / "there").exists() and process.poll() is None:
        time.sleep(0.02)
    for number in numbers:
        process.send_signal(number)
        time.sleep(pause)
    output = process.communicate(timeout=120)[0]
    assert "Traceback" not in output
    return process.returncode, output


def test_ctrl_c_waits_for_the_steps_under_way_and_says_so(tmp_path):
    status, output = interrupt(tmp_path, "evaluating", signal.SIGINT, seconds=2.5)
    assert status == 130
    assert "Ctrl-C: stopping as soon as the current steps are saved. Press Ctrl-C again" in output
    assert "then resumes from the beginning of test, round 0" in output
    assert output.endswith(
        "Stopped by Ctrl-C: the same command resumes from step 5 of 250 of test, round 0.\n"
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == [5]


@pytest.mark.essential
@pytest.mark.slow
def test_ctrl_c_after_a_signal_ends_at_once_and_says_where_the_same_command_begins(tmp_path):
    numbers = (signal.SIGTERM, signal.SIGINT)
    status, output = interrupt(tmp_path, "evaluating", *numbers, pause=0.3)  # of 60 s
    assert status == 128 + signal.SIGTERM
    assert output.endswith(
        "Stopped by SIGTERM: the same command resumes from the beginning of test, round 0.\n"
    )
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps == []


@pytest.mark.essential
@pytest.mark.slow
def test_a_signal_while_the_first_program_is_compiled_ends_the_run(tmp_path):
    status, output = interrupt(tmp_path, "compiling", signal.SIGINT)
    assert status == 130
    assert "Stopped by Ctrl-C: the same command resumes from the beginning of test," in output
