"""A run's history on its own disk, whatever becomes of MLflow.

`metrics.jsonl` is a write-ahead log: a line per step and kind, with its own time. After a rollback to a checkpoint the replayed
steps find their lines already there and keep them, so that no point is doubled.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from vitscale import rundir


class History:
    """`metrics.jsonl`, to be added to. A torn last line, from a kill, is cut off."""

    def __init__(self, path: Path) -> None:
        self._path, self._unwritten = path, b""
        path.touch()
        os.truncate(path, len(whole_lines(path.read_bytes())))
        self._seen = {(line["step"], line["kind"]) for line in read_log(path)}

    def add(self, step: int, kind: str, metrics: dict[str, float], samples: str | None = None) -> None:
        """Note metrics of a step, once; `kind` names the set (train, eval), `samples` is the running hash of sample ids."""
        if (step, kind) in self._seen:
            return
        self._seen.add((step, kind))
        line = {"step": step, "kind": kind, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._unwritten += (json.dumps({**line, "samples": samples} if samples else line) + "\n").encode()
        self._unwritten = rundir.append(self._path, self._unwritten)

    def close(self) -> None:
        """Write what has found no room so far."""
        self._unwritten = rundir.append(self._path, self._unwritten)


def append(path: Path, values: dict[str, Any]) -> None:
    """A line more in a log that is rarely written."""
    with path.open("ab") as log:
        os.truncate(path, len(whole_lines(path.read_bytes())))
        log.write((json.dumps({"time_ms": int(time.time() * 1000), **values}) + "\n").encode())


def whole_lines(content: bytes) -> bytes:
    """Without a last line that is torn, or being written."""
    return content[: content.rfind(b"\n") + 1]


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, which may be being written."""
    content = path.read_bytes() if path.exists() else b""
    return [values for line in whole_lines(content).splitlines() if (values := parse(line))]


def parse(line: bytes) -> dict[str, Any] | None:
    """None for a line that a power cut has left full of zeros."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def last_metrics(path: Path) -> dict[str, float]:
    """The newest value of every metric in a log."""
    latest: dict[str, float] = {}
    for line in sorted(read_log(path), key=lambda line: line["step"]):
        latest.update(line["metrics"])
    return latest
