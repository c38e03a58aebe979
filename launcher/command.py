"""The commands that start a run's processes: pure, config -> list of arguments."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CONFIG_FILE = Path(__file__).parent / "accelerate" / "base.yaml"


def local_command(module: str, words: Sequence[str], num_processes: int, port: int) -> list[str]:
    """`python -m MODULE WORDS...` in all processes on this machine; port 0 = any free one."""
    return _command(1, num_processes, ["--main_process_port", str(port)], module, words)


def node_command(words: Sequence[str], job: Mapping[str, str], log_dir: str) -> list[str]:
    """The processes of one node of a Slurm job, as its variables describe it; their output also under `log_dir`."""
    nodes, procs = int(job["SLURM_NNODES"]), int(job["PROCS_PER_NODE"])
    rendezvous = [
        *("--deepspeed_multinode_launcher", "standard", "--machine_rank", job["SLURM_NODEID"], "--rdzv_backend", "c10d"),
        *("--main_process_ip", job["MAIN_ADDRESS"], "--main_process_port", job["MAIN_PORT"]),
    ]
    if nodes == 1:  # accelerate would let all such jobs of a machine meet at one port
        rendezvous = ["--main_process_port", "0"]
    rendezvous += ["--log_dir", log_dir, "--tee", "3"]
    return _command(nodes, nodes * procs, rendezvous, "vitscale.train", words)


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
