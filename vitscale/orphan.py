"""No process is left behind: the kernel ends a process whose parent has died, however it died. Imports no torch."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Ask for a signal on the parent's death; one that has died already leaves us to init, so end at once."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() == 1 and not _launcher_is_init():
            os._exit(1)


def _launcher_is_init() -> bool:
    """In a container the launcher may itself be process 1: it runs the same interpreter as we do."""
    try:
        return Path("/proc/1/exe").readlink() == Path("/proc/self/exe").readlink()
    except OSError:  # another user's
        return False
