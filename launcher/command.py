"""The commands that start a run's processes: pure, config -> list of arguments."""

import sys
from collections.abc import Sequence
from pathlib import Path

CONFIG_FILE = Path(__file__).parent / "accelerate" / "base.yaml"


def local_command(module: str, words: Sequence[str], num_processes: int, port: int) -> list[str]:
    """`python -m MODULE WORDS...` in all processes on this machine; port 0 = any free one."""
    return _command(1, num_processes, ["--main_process_port", str(port)], module, words)


def node_command(
    recipe: str,
    overrides: Sequence[str],
    num_nodes: int,
    num_processes: int,
    node: int | str,
    main_ip: str,
    port: int | str,
    log_dir: str,
) -> list[str]:
    """The processes of one node of several; `num_processes` on all of them together, their output also under `log_dir`."""
    rendezvous = [
        *("--deepspeed_multinode_launcher", "standard", "--machine_rank", str(node), "--rdzv_backend", "c10d"),
        *("--main_process_ip", main_ip, "--main_process_port", str(port)),
    ]
    if num_nodes == 1:  # accelerate would let all such jobs of a machine meet at one port
        rendezvous = ["--main_process_port", "0"]
    rendezvous += ["--log_dir", log_dir, "--tee", "3"]
    return _command(num_nodes, num_processes, rendezvous, "vitscale.train", [recipe, *overrides])


def _command(num_nodes: int, num_processes: int, rendezvous: Sequence[str], module: str, words: Sequence[str]) -> list[str]:
    """`accelerate launch` with everything said that a user's default config might say otherwise."""
    return [
        *(sys.executable, "-m", "launcher.launch", "--config_file", str(CONFIG_FILE), "--use_deepspeed"),
        *("--num_machines", str(num_nodes), "--num_processes", str(num_processes), *rendezvous),
        *("-m", module, *words),
    ]


def local_environment(num_processes: int, device: str, cores: int) -> dict[str, str]:
    """What the processes should find set: threads that do not fight each other, and which device DeepSpeed is for."""
    accelerator = {"DS_ACCELERATOR": device} if device != "auto" else {}
    return {"OMP_NUM_THREADS": str(max(1, cores // num_processes)), **accelerator}
