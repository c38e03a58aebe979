"""Named points at which a test lets a process die as by `kill -9`: VITSCALE_FAULT=POINT[:RANK[:NTH]]."""

import os
import signal

_visits: list[str] = []


def at(point: str) -> None:
    """Die here if this is the point, the rank (default: any) and the visit (default: the first) that VITSCALE_FAULT names."""
    named, rank, nth, *_ = (*os.environ.get("VITSCALE_FAULT", "").split(":"), "", "")
    if point == named and rank in ("", os.environ.get("RANK", "0")):
        _visits.append(point)
        if len(_visits) == int(nth or 1):
            os.kill(os.getpid(), signal.SIGKILL)
