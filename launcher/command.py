"""The command that starts a run's processes on this machine: pure, config -> list of arguments."""

import sys
from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = Path(__file__).with_name("accelerate.yaml")


def local_command(recipe: str, overrides: Sequence[str], num_processes: int, port: int) -> list[str]:
    """`accelerate launch` with everything said that a user's default config might say otherwise; port 0 = any free one."""
    return [
        *(sys.executable, "-m", "launcher.launch", "--config_file", str(CONFIG_FILE), "--use_deepspeed"),
        *("--num_machines", "1", "--num_processes", str(num_processes), "--main_process_port", str(port)),
        *("-m", "vitscale.train", recipe, *overrides),
    ]
