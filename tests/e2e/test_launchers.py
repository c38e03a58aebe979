"""The launchers of others start the same training: the commands of docs/cluster.md."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
from launching import LAUNCH_TIMEOUT_S, Tiny, clean_environment

pytestmark = pytest.mark.slow
CONFIGS = Path(__file__).parents[2] / "launcher" / "accelerate"
TRAIN = ("-m", "vitscale.train")


def start(*words: str | Path) -> subprocess.Popen[str]:
    scripts = Path(sys.executable).parent
    command = [scripts / words[0], *map(str, words[1:])]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment())


def history(tiny: Tiny, name: str) -> list[tuple]:
    return [
        (line["step"], line["metrics"]["train/loss"], line["samples"]) for line in tiny.metrics(name) if line["kind"] == "train"
    ]


def test_two_processes_by_any_launcher_are_the_same_run(tiny: Tiny) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    config = "--config_file"
    two = ("--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port)
    commands = {
        "cpu": [("accelerate", "launch", config, CONFIGS / "cpu.yaml", *TRAIN)],
        "torchrun": [("torchrun", "--nproc-per-node", "2", *TRAIN)],
        "nodes": [
            ("accelerate", "launch", config, CONFIGS / "nodes.yaml", *two, "--machine_rank", rank, *TRAIN)
            for rank in ("0", "1")
        ],
    }
    for name, parts in commands.items():
        for process in [start(*part, tiny.recipe, f"name={name}") for part in parts]:
            said, _ = process.communicate(timeout=LAUNCH_TIMEOUT_S)
            assert process.returncode == 0, said
        assert (tiny.status(name)["state"], tiny.status(name)["step"]) == ("finished", 20)
    cpu, torchrun, nodes = (history(tiny, name) for name in commands)
    assert len(cpu) > 3
    assert cpu == torchrun
    assert [samples for *_, samples in nodes] == [samples for *_, samples in cpu]
    # A process that is alone on its node has more threads to add up with.
    assert [loss for _, loss, _ in nodes] == pytest.approx([loss for _, loss, _ in cpu], rel=1e-5)
