"""Signals that ask a process to stop in good order, also before it can. Imports no torch."""

import signal

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
received: list[int] = []


def remember() -> None:
    """From here on such a signal ends nothing: it waits in `received`."""
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _frame: received.append(number))
