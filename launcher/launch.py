"""`python -m launcher.launch` = `accelerate launch`, less its traceback when a worker has already said what went wrong."""

import logging
import os
import signal
import sys
import time
from pathlib import Path

from vitscale import failure

OTHERS_FIRST_S = 3.0
SAVE_WITHIN_S = 600  # of a stop signal; torch would kill the processes 30 s after it, in the middle of a large checkpoint


def main() -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.disable(logging.ERROR)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SAVE_WITHIN_S))
    sys.modules["mlflow"] = None  # type: ignore[assignment]  # DeepSpeed's autotuner would import it, which takes seconds
    try:
        launch_command(launch_command_parser().parse_args())
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        # Named, not imported: that module costs a second, and only failures need it.
        if type(error).__name__ not in ("ChildFailedError", "SignalException"):
            raise
        report(getattr(error, "failures", {}))
        sys.exit(1)


def report(failures: dict) -> None:
    """Say of a worker what it could not say itself: that a signal ended it."""
    if not failures:
        return
    rank, first = min(failures.items(), key=lambda item: item[1].timestamp)
    told = f"exit status {first.exitcode}, see its log"
    if first.exitcode == -signal.SIGKILL:
        told = "was killed (it ran out of memory, or somebody killed it)"
        print(f"error: process {first.local_rank} {told}; start again to go on from the last checkpoint", file=sys.stderr)
    elif first.exitcode < 0:
        told = f"was ended by {signal.Signals(-first.exitcode).name}"
    if run_dir := os.environ.get("RUN_DIR"):
        if first.exitcode > 0:  # perhaps only because another node's process is gone, which that node then says
            time.sleep(OTHERS_FIRST_S)
        failure.note(Path(run_dir), failure.place(rank, "?", "?"), told)


if __name__ == "__main__":
    main()
