"""metrics.jsonl, which outlives a kill."""

import json

import pytest

from egmae_jax.run import logs
from egmae_jax.run.logs import MetricsLog

ROWS = [
    {"stage": "pretrain", "round": 0, "epoch": 1, "step": 10, "loss": 0.5},
    {"stage": "pretrain", "round": 0, "epoch": 2, "step": 20, "loss": 0.4},
    {"stage": "finetune/mae", "round": 0, "epoch": 1, "step": 10, "loss": 1.1},
    {"stage": "finetune/mae", "round": 1, "epoch": 1, "step": 10, "loss": 1.2},
    {"stage": "finetune/mae", "round": 1, "epoch": 2, "step": 20, "loss": 0.9},
    {"stage": "finetune/mae", "round": 1, "epoch": 3, "step": 30, "loss": 0.7},
    {"stage": "finetune/imagenet", "round": 1, "epoch": 3, "step": 30, "loss": 0.6},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.jsonl"


@pytest.fixture
def log(path):
    log = MetricsLog(path)
    for row in ROWS:
        log.write(**row)
    return log


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_no_line_of_the_log_is_not_read(log, path):
    own = path.read_bytes().splitlines()
    odd = (b"[]", b"\xff\xfe", b'{"stage": "pretrain", "rou')
    path.write_bytes(b"\n".join([*odd[:2], *own, *odd[2:]]))
    assert list(logs.read(path)) == list(zip(own, ROWS, strict=True))
    assert list(logs.read(path.with_name("none.jsonl"))) == []


@pytest.mark.parametrize(
    ("stage", "round_index", "step", "dropped"),
    [
        ("finetune/mae", 1, 10, {4, 5}),
        ("pretrain", 0, 0, {0, 1}),
        ("finetune/mae", 1, 30, set()),
        ("finetune/imagenet", 0, 0, set()),
    ],
)
def test_forget_drops_the_later_lines_of_that_stage_and_round_alone(
    log, path, stage, round_index, step, dropped
):
    assert rows(path) == ROWS
    log.forget(stage, round_index, after_step=step)
    assert rows(path) == [row for i, row in enumerate(ROWS) if i not in dropped]
    assert [x.name for x in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("end", ["", '\n{"stage"', '\n{"stage": "finetune/imagenet", "round": 1'])
def test_a_last_line_that_was_cut_off_is_dropped_and_a_whole_one_stays(log, path, end):
    path.write_text(path.read_text().rstrip("\n") + end)
    log.forget("pretrain", 5, after_step=0)
    log.write(**ROWS[1])
    assert rows(path) == [*ROWS, ROWS[1]]
