"""A run's history is whole in metrics.jsonl whatever happens."""

import json
import resource

import pytest

from vitscale.history import History, Log, last_metrics, read_log


@pytest.fixture
def log(tmp_path):
    return tmp_path / "metrics.jsonl"


def add(log, *steps):
    history = History(log)
    for step in steps:
        history.add(step, "train", {"train/loss": 1 / step}, samples=f"hash{step}")
    history.close()


def steps(log):
    return [line["step"] for line in read_log(log)]


def test_replayed_steps_keep_their_lines(log):
    add(log, 1, 2, 3)
    first = read_log(log)
    add(log, 2, 3, 4)
    assert read_log(log)[:3] == first
    assert steps(log) == [1, 2, 3, 4]


def test_step_and_kind_name_a_line(log):
    history = History(log)
    history.add(1, "train", {"train/loss": 1.0})
    history.add(1, "eval", {"eval/top1": 0.5})
    history.add(1, "eval", {"eval/top1": 0.6})
    history.close()
    assert [(line["kind"], line["metrics"]) for line in read_log(log)] == [
        ("train", {"train/loss": 1.0}),
        ("eval", {"eval/top1": 0.5}),
    ]


def test_a_full_disk_costs_a_warning_and_what_is_missing_follows(log, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    history = History(log)
    history.add(1, "train", {"train/loss": 1.0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 10, limits[1]))
    try:
        history.add(2, "train", {"train/loss": 0.5})
        torn = log.read_bytes()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    history.add(3, "train", {"train/loss": 0.25})
    history.close()
    assert torn.endswith(b'\n{"step": 2')
    assert f"warning: {log}: File too large" in capsys.readouterr().out
    assert steps(log) == [1, 2, 3]


def test_a_torn_last_line_is_cut_off_and_the_step_logged_again(log):
    add(log, 1, 2)
    with log.open("ab") as file:
        file.write(b'{"step": 3, "kind": "train", "time_ms": 17')
    assert steps(log) == [1, 2]
    add(log, 3, 4)
    assert steps(log) == [1, 2, 3, 4]


def test_a_line_is_appended_after_a_torn_one(log):
    Log(log).add({"step": 1})
    with log.open("ab") as file:
        file.write(b'{"step": ')
    Log(log).add({"step": 2})
    assert steps(log) == [1, 2]


def test_the_newest_value_of_every_metric_counts(log):
    assert last_metrics(log) == {}
    lines = [
        {"step": 2, "metrics": {"a": 2, "b": 2}},
        {"step": 3, "metrics": {"a": 3}},
        {"step": 1, "metrics": {"a": 1, "c": 1}},
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert last_metrics(log) == {"a": 3, "b": 2, "c": 1}
