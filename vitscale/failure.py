"""`first_error.txt` of a run directory: what went wrong first, where. Imports no torch; any process of a run may write it."""

import os
import socket
from pathlib import Path

NAME = "first_error.txt"


def host() -> str:
    """This machine, as Slurm names it where it runs us."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def place(rank: int, step: int | str, phase: str, where: str = "") -> str:
    """`rank 3 on node1, step 1200, phase train`."""
    return f"rank {rank} on {where or host()}, step {step}, phase {phase}"


def note(run_dir: Path, where: str, what: str) -> bool:
    """Write it down, unless something had gone wrong before: what follows from that tells nothing. True = it was the first."""
    try:
        with (run_dir / NAME).open("x") as file:
            file.write(f"{where}: {what}\n")
    except OSError:  # there already, or no place to write; the log has it all the same
        return False
    return True
