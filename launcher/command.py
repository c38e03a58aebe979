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


def local_environment(num_processes: int, device: str, cores: int) -> dict[str, str]:
    """What the processes should find set: threads that do not fight each other, and which device DeepSpeed is for."""
    accelerator = {"DS_ACCELERATOR": device} if device != "auto" else {}
    return {"OMP_NUM_THREADS": str(max(1, cores // num_processes)), **accelerator}
