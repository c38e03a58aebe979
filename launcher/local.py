"""Processes on this machine: how many, on which port, and never left behind."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence

from vitscale.config import HardwareConfig
from vitscale.errors import LaunchError
from vitscale.orphan import die_with_parent
from vitscale.stopsignal import STOP_SIGNALS, received


def default_processes(hardware: HardwareConfig) -> int:
    """One per visible GPU, or one on a machine without."""
    return max(1, count_gpus(os.environ)) if hardware.device != "cpu" else 1


def count_gpus(environ: Mapping[str, str]) -> int:
    """NVIDIA GPUs that a process started here may use, asked of the driver so that torch stays unloaded."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return len([line for line in listed.stdout.splitlines() if line.startswith("GPU ")])


def check_port(port: int) -> None:
    """The port that the processes will meet on is free; 0 stands for any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise LaunchError(
                f"--port {port}: cannot be used ({error}); stop what uses it, give another one, or leave --port away "
                "to have a free one chosen"
            ) from None


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run to the end with this added to the environment; returns the exit status. Any stop signal goes on as SIGTERM,
    which accelerate passes to its workers; of the others it dies.

    The processes die with this one.
    """
    process = subprocess.Popen(command, env={**os.environ, **environment}, preexec_fn=die_with_parent)

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        process.terminate()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        status = process.wait()
        return status if status >= 0 else 128 - status  # a signal, as shells report it
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
