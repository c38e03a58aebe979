"""A run's logs on its own disk, and its history there, whatever becomes of MLflow.

`metrics.jsonl` is a write-ahead log: a line per step and kind, with its own time. After a rollback to a checkpoint the replayed
steps find their lines already there and keep them, so that no point is doubled.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from vitscale.progress import say
from vitscale.rundir import replace_text


class Log:
    """JSON lines in a file, to be added to. A full disk costs a warning: what finds no room follows when there is some."""

    def __init__(self, path: Path) -> None:
        """A torn last line, from a kill, is cut off."""
        self._path, self._unwritten = path, b""
        if path.exists():
            os.truncate(path, len(whole_lines(path.read_bytes())))

    def add(self, *lines: dict[str, Any]) -> None:
        """Write them, after what has found no room so far."""
        self._unwritten += "".join(json.dumps(line) + "\n" for line in lines).encode()
        if not self._unwritten:
            return
        try:
            with self._path.open("ab", buffering=0) as file:
                while self._unwritten:
                    self._unwritten = self._unwritten[file.write(self._unwritten) or 0 :]
        except OSError as error:
            reason = f"{self._path}: {error.strerror}; training goes on, the rest follows when there is room"
            say(f"warning: {reason}", show=bool(lines))

    def forget_after(self, step: int) -> None:
        """Drop the lines of later steps: a run that goes on from this one writes them again."""
        if self._path.exists():
            kept = [line for line in read_log(self._path) if line["step"] <= step]
            replace_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))


class History:
    """`metrics.jsonl`, to be added to."""

    def __init__(self, path: Path) -> None:
        self._log = Log(path)
        self._seen = {(line["step"], line["kind"]) for line in read_log(path)}

    def add(self, step: int, kind: str, metrics: dict[str, float], samples: str | None = None) -> None:
        """Note metrics of a step, once; `kind` names the set (train, eval), `samples` is the running hash of sample ids."""
        if (step, kind) in self._seen:
            return
        self._seen.add((step, kind))
        line = {"step": step, "kind": kind, "time_ms": int(time.time() * 1000), "metrics": metrics}
        self._log.add({**line, "samples": samples} if samples else line)

    def close(self) -> None:
        """Write what has found no room so far."""
        self._log.add()


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
