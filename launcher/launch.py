"""`python -m launcher.launch` = `accelerate launch`, less its traceback when a worker has already said what went wrong."""

import logging
import sys


def main() -> None:
    from accelerate.commands.launch import launch_command, launch_command_parser

    logging.disable(logging.ERROR)
    try:
        launch_command(launch_command_parser().parse_args())
    except Exception as error:
        # Named, not imported: that module costs a second, and only failures need it.
        if type(error).__name__ not in ("ChildFailedError", "SignalException"):
            raise
        sys.exit(1)


if __name__ == "__main__":
    main()
