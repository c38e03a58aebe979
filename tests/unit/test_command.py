"""The launcher: what is started, with what, and where."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from launcher.command import CONFIG_FILE, local_command, local_environment
from launcher.launch import report
from launcher.local import check_port, count_gpus, default_processes, run
from vitscale.config import HardwareConfig
from vitscale.errors import LaunchError

HOSTILE = [
    "name=a b",
    "name='; rm -rf ~'",
    "runs=$HOME/`x`",
    "tracking.uri=http://x?a=b&c",
    "--num_processes=9",
    "a=\n",
    "-m",
    "",
]


@pytest.mark.slow
def test_a_stop_signal_leaves_time_to_save(tmp_path):
    """Torch would kill the processes after 30 s."""
    (script := tmp_path / "saves.py").write_text(SAVES)
    command = [*local_command("x", [], 1, 0)[:-2], str(script), str(tmp_path / "saved")]
    launcher = subprocess.Popen(command, env=os.environ | local_environment(1, "cpu", 1))
    wait_until((tmp_path / "saved").exists, 60)
    launcher.terminate()
    launcher.wait(90)
    assert (tmp_path / "saved").read_text() == "whole"


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(33)
    pathlib.Path(sys.argv[1]).write_text("whole")
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1]).write_text("part")
time.sleep(60)
"""


def test_a_process_that_a_signal_ended_is_named_by_its_rank(tmp_path, monkeypatch):
    """Among all nodes, whatever their order in the rendezvous: here the second process of the node with ranks 4 to 7."""
    monkeypatch.setenv("RUN_DIR", str(tmp_path))
    killed = [ProcessFailure(local_rank, 100, -signal.SIGKILL, error_file="") for local_rank in (0, 1)]
    killed[0].timestamp, killed[1].timestamp = 20, 10
    report({4: killed[0], 5: killed[1]})
    assert (tmp_path / "first_error.txt").read_text().startswith(f"rank 5 on {socket.gethostname()}, step ?")


NEW_PIDS = ("--user", "--map-root-user", "--pid", "--fork", "--mount-proc")  # a process tree of its own, as in a container


def understood(overrides, num_processes=3, port=0):
    """The command as accelerate itself parses it."""
    return launch_command_parser().parse_args(
        local_command("vitscale.train", ["my recipe.yaml", *overrides], num_processes, port)[3:]
    )


def test_the_command_is_a_list_of_strings():
    command = local_command("vitscale.train", ["r.yaml", *HOSTILE], 2, 0)
    assert command[:3] == [sys.executable, "-m", "launcher.launch"]
    assert all(type(word) is str for word in command)


def test_accelerate_understands_what_was_meant():
    args = understood([], num_processes=3, port=12345)
    assert (args.num_processes, args.num_machines, args.main_process_port, args.use_deepspeed) == (3, 1, 12345, True)
    assert (args.module, args.training_script) == (True, "vitscale.train")


def test_every_override_stays_one_argument():
    assert understood(HOSTILE).training_script_args == ["my recipe.yaml", *HOSTILE]
    assert understood(HOSTILE).num_processes == 3


def test_our_own_config_file_is_given_and_decides_nothing_about_training():
    assert understood([]).config_file == str(CONFIG_FILE)
    settings = yaml.safe_load(CONFIG_FILE.read_text())
    assert (settings["distributed_type"], settings["deepspeed_config"], settings["mixed_precision"]) == ("DEEPSPEED", {}, "no")


@pytest.mark.parametrize(("procs", "cores", "threads"), [(1, 8, "8"), (2, 8, "4"), (3, 8, "2"), (8, 2, "1")])
def test_processes_share_the_cores(procs, cores, threads):
    assert local_environment(procs, "cpu", cores) == {"OMP_NUM_THREADS": threads, "DS_ACCELERATOR": "cpu"}
    assert "DS_ACCELERATOR" not in local_environment(procs, "auto", cores)


@pytest.mark.parametrize(("visible", "count"), [("0", 1), ("0,1,3", 3), ("", 0), ("-1", 0), ("GPU-a,MIG-b", 2), ("0, 1", 2)])
def test_visible_devices_are_counted(visible, count):
    assert count_gpus({"CUDA_VISIBLE_DEVICES": visible}) == count


def test_without_a_driver_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert count_gpus({}) == 0


def test_else_the_driver_is_asked(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    lines = ["GPU 0: NVIDIA H200 (UUID: GPU-a)", "  MIG 1g.18gb Device 0: (UUID: MIG-b)", "GPU 1: NVIDIA H200 (UUID: GPU-c)"]
    driver.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    driver.chmod(driver.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert count_gpus({}) == 2


@pytest.mark.parametrize(
    ("device", "visible", "count"), [("cuda", "0,1", 2), ("auto", "0,1", 2), ("auto", "", 1), ("cpu", "0,1", 1)]
)
def test_one_process_per_gpu_or_one(monkeypatch, device, visible, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert default_processes(HardwareConfig(device=device)) == count


def test_a_busy_port_is_an_error_that_names_it():
    with socket.socket() as busy:
        busy.bind(("", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"--port {port}: cannot be used .*in use.*leave --port away"):
            check_port(port)
    check_port(port)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_a_port_that_cannot_exist_is_an_error(port):
    with pytest.raises(LaunchError, match=f"--port {port}: cannot be used"):
        check_port(port)


def test_port_zero_stands_for_any():
    check_port(0)


def test_run_gives_back_the_exit_status_and_adds_to_the_environment():
    assert run([sys.executable, "-c", "import os; exit(int(os.environ['N']))"], {"N": "7"}) == 7


CHILD = """
import os, sys, time
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(60)
"""
PARENT = """
import sys
from launcher.local import run
print(run([sys.executable, "-c", *sys.argv[1:]], {}))
"""


def start_parent(file):
    """A process that runs a sleeping child, and that child's number."""
    command = [sys.executable, "-c", PARENT, CHILD, str(file)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    wait_until(file.exists)
    return parent, int(file.read_text())


def wait_until(true, seconds=20):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid):
    """No such process, or one that is dead and not yet collected."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_is_passed_on_as_the_one_that_launchers_pass_on(tmp_path, number):
    parent, child = start_parent(tmp_path / "pid")
    parent.send_signal(number)
    assert parent.communicate(timeout=20)[0] == f"{128 + signal.SIGTERM}\n"  # what the child died of
    assert gone(child)


def can_make_namespaces():
    return shutil.which("unshare") and subprocess.call(["unshare", *NEW_PIDS, "true"], stderr=subprocess.DEVNULL) == 0


@pytest.mark.skipif(not can_make_namespaces(), reason="needs user namespaces")
def test_a_launcher_that_is_the_first_process_of_a_container_starts_its_processes():
    command = ["unshare", *NEW_PIDS, sys.executable, "-c", PARENT, "import os; print(os.getppid())"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_a_killed_launcher_takes_its_processes_along(tmp_path):
    parent, child = start_parent(tmp_path / "pid")
    parent.kill()
    parent.communicate(timeout=20)
    wait_until(lambda: gone(child))
