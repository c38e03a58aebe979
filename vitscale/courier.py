"""The process that carries a run's history to MLflow while rank 0 trains. It shares no lock with it, so a server that is slow,
frozen or gone costs the training nothing. `python -m vitscale.courier RUN_DIR` follows the directory; `sync` is the same once.
"""

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.delivery import Delivery, left, store_uri
from vitscale.errors import TrackingError
from vitscale.history import History, Log
from vitscale.orphan import die_with_parent
from vitscale.progress import say
from vitscale.publish import publish_due
from vitscale.rundir import RunDir
from vitscale.tracking import mlflow_errors, reason, without_secrets

SEND_EVERY_S = 3.0
CLOSE_WITHIN_S = 30.0
STOP_WITHIN_S = 10.0  # after a stop signal: launchers kill 30 s after it
REVIVE_EVERY_S = 60.0
NICE = 10  # the ranks come first


class Tracker:
    """The history of one run, kept by rank 0; on other ranks, and after `close`, nothing happens. `with Tracker(...)`."""

    def __init__(self, cfg: RunConfig, run: RunDir, active: bool) -> None:
        self._run, self._active = run, active
        self.uri = store_uri(cfg, run)

    def __enter__(self) -> Self:
        if self._active:
            self._history, self._attempts = History(self._run.metrics), Log(self._run.attempts)
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("FAILED" if kind else "KILLED")

    def _start(self) -> None:
        """Call in the main thread: the kernel ends the courier with the thread that has started it."""
        command = [sys.executable, "-m", "vitscale.courier", str(self._run.path)]
        self._courier = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # signals are for the ranks
        self._since = time.monotonic()

    def _revive(self) -> None:
        """Start another where somebody has killed it."""
        if self._courier.poll() is not None:
            assert self._courier.stdin
            self._courier.stdin.close()
            self._start()

    def log(self, step: int, kind: str, metrics: dict[str, float], samples: str | None = None) -> None:
        """Note metrics of a step; `kind` names the set (train, eval), `samples` is the running hash of sample ids."""
        if self._active:
            self._history.add(step, kind, metrics, samples)
            if time.monotonic() > self._since + REVIVE_EVERY_S:
                self._revive()

    def note_start(self, **values: Any) -> None:
        """Note where and how the run was started, for its page in MLflow."""
        if self._active:
            self._attempts.add({"time_ms": int(time.time() * 1000), **values})

    def close(self, status: str) -> None:
        """Have the rest sent, within a bound, and the run's status set: FINISHED, FAILED or KILLED."""
        if not self._active:
            return
        self._active = False
        self._history.close()
        self._attempts.add()  # what has found no room so far
        self._revive()
        within = CLOSE_WITHIN_S if status == "FINISHED" else STOP_WITHIN_S
        try:
            self._courier.communicate(status.encode(), timeout=within)
        except subprocess.TimeoutExpired:
            self._courier.kill()
            self._courier.wait()
        if self._courier.returncode:
            say(
                f"warning: MLflow at {without_secrets(self.uri)} does not have the whole history after {within:.0f} s "
                f"({left(self._run) or 'its status, or pictures'} left); to send it: vitscale sync {self._run.path}"
            )


def main(path: Path) -> None:
    """Send until the training has ended, then the rest. The trainer waits for that; one that died leaves 10 s."""
    cfg, run = open_run(path)
    with alone(run, fcntl.LOCK_EX):
        delivery, status, problem = Delivery(cfg, run), "RUNNING", ""
        chores = Chores(cfg, run, delivery.uri)
        while True:
            over = status != "RUNNING"
            try:
                delivery.round(status)
                if status == "FINISHED":  # what is there need not wait for the last pictures
                    chores.finish()
                    delivery.round(status)
                if over:
                    return
                problem = ""
            except Exception as error:  # MLflow's come with the scheme
                if not problem:
                    say(f"warning: {delivery.name}: {reason(error)}. Training goes on, its history is in {run.metrics}")
                problem = str(error)
            if over:
                time.sleep(1)
            elif select.select([sys.stdin], [], [], SEND_EVERY_S)[0]:
                status = sys.stdin.read() or ended(run)


class Chores:
    """A thread for what may take minutes between two sends: drawing what is due, publishing the best checkpoint so far."""

    def __init__(self, cfg: RunConfig, run: RunDir, uri: str) -> None:
        self._cfg, self._run, self._uri = cfg, run, uri
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chores", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Draw what the end of the run has brought. The trainer itself publishes then."""
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        said: set[str] = set()
        while True:
            last = self._over.is_set()
            for name, chore in [("draw", self._draw), ("publish", self._publish)][: 1 if last else 2]:
                try:
                    chore()
                except Exception as error:  # a picture or a copy that is missing harms no training
                    if (problem := f"to {name}: {reason(error)}") not in said:
                        say(f"warning: {self._run.path}: {problem}; tried again later")
                    said.add(problem)
            if last:
                return
            self._over.wait(SEND_EVERY_S)

    def _draw(self) -> None:
        from vitscale.figures.due import draw_due  # matplotlib; the trainer imports this file, too

        draw_due(self._run.path)

    def _publish(self) -> None:
        if self._cfg.publish and self._run.mlflow_run_id.exists():
            publish_due(self._run, self._cfg, self._uri, self._run.mlflow_run_id.read_text(), finished=False)


def ended(run: RunDir) -> str:
    """How a training ended that can no longer say so, as its run directory tells it."""
    status = run.status
    if status.get("trained"):  # whatever became of its publishing
        return "FINISHED"
    return {"finished": "FINISHED", "failed": "FAILED"}.get(status.get("state", ""), "KILLED")


@contextmanager
def alone(run: RunDir, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[None]:
    """No other process sends of this run directory meanwhile; it is waited for, or by default refused."""
    with (run.path / ".courier").open("w") as lock:
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            raise TrackingError(f"another process is sending what is in {run.path}; wait for it") from None
        yield


def open_run(path: Path) -> tuple[RunConfig, RunDir]:
    """A run directory wherever it now is, and its recipe."""
    if not (path / "recipe.yaml").is_file():
        raise TrackingError(f"{path}: not a run directory (no recipe.yaml in it)")
    cfg = recipe.load(path / "recipe.yaml")
    cfg = cfg.model_copy(update={"runs": str(path.absolute().parent), "name": path.absolute().name})
    return cfg, RunDir(cfg)


def sync(path: Path) -> str:
    """Send what MLflow lacks of a run directory; returns the run's id."""
    cfg, run = open_run(path)
    run.check_free()  # a training sends its history itself
    delivery = Delivery(cfg, run)
    with mlflow_errors(delivery.uri), alone(run):
        delivery.round(ended(run))
        try:
            from vitscale.figures.due import draw_due

            draw_due(path)
        except Exception as error:  # without the images, say, elsewhere
            say(f"warning: {path}: pictures that are due cannot be drawn: {reason(error)}")
        return delivery.round(ended(run))


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, lambda *_: signal.alarm(round(STOP_WITHIN_S)))
    die_with_parent(signal.SIGHUP)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICE)
    main(Path(sys.argv[1]))
