"""`python -m launcher.launch` = `accelerate launch`, less its traceback when a worker has already said what went wrong."""

import logging
import signal
import sys


def main() -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.disable(logging.ERROR)
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
    """Say of a worker that a signal ended it, which it could not say itself."""
    first = min(failures.values(), key=lambda failure: failure.timestamp, default=None)
    if first is not None and first.exitcode == -signal.SIGKILL:
        why = "it ran out of memory, or somebody killed it"
        print(
            f"error: process {first.local_rank} was killed ({why}); start again to go on from the last checkpoint",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
