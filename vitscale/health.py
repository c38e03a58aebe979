"""Do all processes of a run still move? Each tells the others where it stands, and hears from them that it is to stop or end.

It is a thread's work, for the main thread may be what hangs, and goes by way of the store that the processes met in.
"""

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import NamedTuple, Self

import torch.distributed as dist

from vitscale import failure
from vitscale.errors import LaunchError
from vitscale.rundir import RunDir
from vitscale.world import World

TICK_S = 2.0
ENDING_S = 10.0  # for writing stacks to a run directory that may itself be what hangs
WORKING = ("start", "checkpoint")  # phases that are long in one piece: there who computes gets on


class Beat(NamedTuple):
    """What a process says of itself."""

    rank: int
    host: str
    pid: int
    step: int
    phase: str
    idle_s: float  # since the main thread got on
    stack: str
    number: int

    def __str__(self) -> str:
        return f"{failure.place(self.rank, self.step, self.phase, self.host)} (process {self.pid})"


def deadline(text: str) -> float:
    """Seconds since 1970; infinity where nothing is said."""
    try:
        return float(text or "inf")
    except ValueError:
        raise LaunchError(f"VITSCALE_DEADLINE: found {text!r}, it takes seconds since 1970: $(date -d tomorrow +%s)") from None


class Watch:
    """`with Watch(...):` around what may hang; call on every rank.

    When a rank gives no sign of life, or no rank gets on, for `hang_after_s`, all processes write their stacks and end with
    exit status 1. Rank 0 watches all, the others watch rank 0. A stop that one rank is asked for, by signal, by the file `stop`
    or by VITSCALE_DEADLINE (seconds since 1970), reaches all.
    """

    def __init__(self, world: World, run: RunDir, hang_after_s: float) -> None:
        self._world, self._run, self._limit = world, run, hang_after_s
        self._tick = min(TICK_S, hang_after_s / 8)
        self._deadline = deadline(os.environ.get("VITSCALE_DEADLINE", ""))
        self._store = dist.PrefixStore("watch", dist.distributed_c10d._get_default_store().clone())  # type: ignore[attr-defined]
        self._store.set_timeout(timedelta(seconds=hang_after_s))
        self._heard: dict[str, tuple[float, bytes]] = {}  # when each rank last said something new
        self._excused = self._woke = time.monotonic()
        self._cpu_s, self._number = 0.0, 0
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run_thread, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._pass_on_stop()
        self._world.gather(None)  # from here on everybody has said something, and no step begins after a stop
        self._pass_on_stop()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(2 * self._tick)

    def _run_thread(self) -> None:
        with contextlib.suppress(dist.DistError):  # the store is gone: so is the launcher, which ends us
            while not self._left.wait(self._tick):
                if self._store.check(["hang"]):
                    self._end()
                self._pass_on_stop()
                self._beat()
                self._look()

    def _pass_on_stop(self) -> None:
        world = self._world
        # One save may be in flight before the last; the step at work ends, the next is lost, and one more may be under way.
        due = time.time() > self._deadline - 2 * world.save_s - 3 * world.phases.step_s
        if not world.stop_requested:
            reason = "deadline" if due else "stop file" if world.is_main and os.access(self._run.stop, os.F_OK) else ""
            if reason or self._store.check(["stop"]):
                world.stop_reason = reason or world.stop_reason
                world.request_stop()
        if world.stop_requested:
            self._store.set("stop", "")

    def _beat(self) -> None:
        now, cpu_s, phases = time.monotonic(), time.process_time(), self._world.phases
        if now - self._woke > self._limit / 2:  # this process itself was stopped, others perhaps with it: count anew
            self._excused, self._heard = now, {}
        if phases.name in WORKING and cpu_s - self._cpu_s > 0.01 * (now - self._woke):
            self._excused = now
        self._woke, self._cpu_s, self._number = now, cpu_s, self._number + 1
        idle_s = now - max(phases.since, self._excused)
        who = self._world.rank, failure.host(), os.getpid()
        beat = Beat(*who, phases.step, phases.name, idle_s, main_stack(), self._number)
        self._store.set(f"rank{self._world.rank}", json.dumps(beat))

    def _look(self) -> None:
        now, keys = time.monotonic(), [f"rank{rank}" for rank in range(self._world.size if self._world.is_main else 1)]
        for key, said in zip(keys, self._store.multi_get(keys), strict=True):
            if key not in self._heard or self._heard[key][1] != said:
                self._heard[key] = (now, said)
        beats = [Beat(*json.loads(self._heard[key][1])) for key in keys]
        silent = [beat for beat, key in zip(beats, keys, strict=True) if now - self._heard[key][0] > self._limit]
        if silent:
            self._raise_alarm(silent[0], "gives no sign of life")
        elif self._world.is_main and min(beat.idle_s for beat in beats) > self._limit:
            self._raise_alarm(min(beats, key=lambda beat: (beat.step, -beat.idle_s)), "does not get on, nor does any other,")

    def _raise_alarm(self, beat: Beat, why: str) -> None:
        why += f" for {self._limit:g} s (hardware.hang_after_s)"
        message = f"{beat}: {why}"
        failure.note(self._run.path, str(beat), f"{why}; it stood at\n{beat.stack}")
        if self._store.add("alarms", 1) == 1:  # all see it when rank 0 falls silent; one says so
            print(
                f"error: {message}; all processes end, their stacks are in {self._run.hang}; start again to go on from the "
                f"last checkpoint. It stood at\n{beat.stack}",
                file=sys.stderr,
                flush=True,
            )
        self._store.set("hang", message)
        with contextlib.suppress(OSError):
            if beat.host == failure.host():
                os.kill(beat.pid, signal.SIGCONT)  # one that somebody has stopped can then end, too
        self._end()

    def _end(self) -> None:
        threading.Timer(ENDING_S, os._exit, (1,)).start()
        with contextlib.suppress(OSError):
            self._run.hang.mkdir(exist_ok=True)
            with (self._run.hang / f"rank_{self._world.rank:05d}.txt").open("w") as file:
                faulthandler.dump_traceback(file)
            if self._world.is_main:
                self._run.write_status("failed", error=self._store.get("hang").decode())
        time.sleep(3 * self._tick)  # who ends takes the others along, and they are still writing
        os._exit(1)


def main_stack() -> str:
    """Where the main thread is, outermost call first."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    lines = [f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}" for frame, line in traceback.walk_stack(frame)]
    return "\n".join(reversed(lines))
