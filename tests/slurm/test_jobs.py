"""Whatever happens to the jobs of a run, it goes on to the same end."""

import fcntl
import os
import signal
import subprocess

import pytest
from conftest import BIN, CLUSTER_SH, Run, Slurm

from vitscale import recipe

pytestmark = pytest.mark.slurm


def begin(slurm: Slurm, name: str, **how) -> tuple[Run, str]:
    """A run that has made some steps and a checkpoint."""
    run = slurm.run(name)
    job = slurm.submit(run, **how)
    slurm.wait(run, lambda: run.steps() and run.steps()[-1] >= 30)
    return run, job


def same(run: Run, other: Run) -> bool:
    return run.weights() == other.weights() and run.history() == other.history()


def test_a_whole_run_on_two_hosts(undisturbed: Run) -> None:
    said = undisturbed.output()
    assert "2 nodes x 1 processes on node" in said
    assert "2 processes x micro-batch 24" in said
    assert "[node0 rank 0] loading torch" in said
    hosts = [path.name for path in undisturbed.path.glob("logs/*/node*")]
    assert len(hosts) == len(set(hosts)) == 2
    assert "loading torch" in "".join(path.read_text() for path in undisturbed.path.glob("logs/*/node*/**/std*.log"))
    assert recipe.load(undisturbed.path / "submitted.yaml") == recipe.load(undisturbed.recipe)
    assert undisturbed.steps()[-1] == 120


def test_the_time_limit(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "limit", time="6:00")
    frozen = [pid for node in ("node0", "node1", "node2") for pid in slurm.processes(node, "vitscale.train\0")]
    for pid in frozen:  # until the signal, five minutes before the limit; all, or those that wait for one call it a hang
        os.kill(pid, signal.SIGSTOP)
    slurm.wait(run, lambda: "SIGUSR1" in run.output())
    for pid in frozen:
        os.kill(pid, signal.SIGCONT)
    slurm.finish(run, job)
    assert "stopped at step" in run.output()
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    assert same(run, undisturbed)


def test_a_time_limit_that_leaves_no_time_for_work_is_no_endless_loop(slurm: Slurm) -> None:
    run = slurm.run("loop")
    (slow := slurm.folder / "slow" / "python").parent.mkdir()  # the signal comes first, on a fast machine too
    wait = 'if [ "$2" = launcher.node ]; then until [ -e "$RUN_DIR/stop" ]; do sleep 1; done; fi'
    slow.write_text(f'#!/bin/sh\n{wait}\nexec {BIN}/python "$@"\n')
    slow.chmod(0o755)
    job = slurm.submit(run, time="1:00", folder=str(slow.parent), max_failures=2)
    slurm.wait(run, lambda: slurm.ended(job))
    assert slurm.state(job) == "FAILED"
    failures, given_up = run.output().split("given up: 2 failures since the checkpoint nothing")
    assert failures.count("there was no time for a step") == given_up.count("there was no time for a step") == 2
    assert run.steps() == []


def test_processes_that_stand_still_do_not_cost_the_job_its_place(slurm: Slurm, undisturbed: Run) -> None:
    """Slurm ends a job for good at its time limit; what has not stopped by then ends a minute before."""
    run, job = begin(slurm, "still", time="2:00", options=', signal: "B:USR1@10"')
    for node in ("node0", "node1", "node2"):
        for pid in slurm.processes(node, "vitscale.train\0"):
            os.kill(pid, signal.SIGSTOP)
    slurm.finish(run, job)
    assert "rank ? on ?: at work until the end of the time" in (run.path / "failures.txt").read_text()
    assert same(run, undisturbed)


def test_a_signal_that_comes_while_the_job_is_set_up_is_not_lost(slurm: Slurm) -> None:
    run = slurm.run("early")
    job = slurm.submit(run, max_failures=1, folder=f"{BIN}:$PATH; kill -USR1 $$; PATH={BIN}")
    slurm.wait(run, lambda: slurm.ended(job))
    assert "ExitCode=1:0" in slurm("scontrol", "show", "job", job), run.output()
    assert "SIGUSR1: all processes are asked to stop" in run.output()
    assert "given up: 1 failures" in run.output() and run.steps() == []


def test_a_job_that_is_being_signalled_and_has_no_room_for_its_log_is_queued_again(slurm: Slurm, undisturbed: Run) -> None:
    """Slurm calls it `SIGNALING`, not `RUNNING`, until all nodes have answered: ten seconds if one does not."""
    run, job = begin(slurm, "signalled", options=", output: /dev/full")
    deaf = int((slurm.folder / "slurmd.node1.pid").read_text())
    os.kill(deaf, signal.SIGSTOP)
    try:
        slurm("scancel", "--signal=CONT", job)
        slurm("scancel", "--batch", "--signal=USR1", job)
        slurm.wait(run, lambda: slurm.state(job) not in ("RUNNING", "SIGNALING"))
    finally:
        os.kill(deaf, signal.SIGCONT)
    slurm.finish(run, job)
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    assert same(run, undisturbed)


def test_pre_emption(slurm: Slurm, undisturbed: Run) -> None:
    """While it starts, which is no failure, and while it trains."""
    run = slurm.run("preempted")
    job = slurm.submit(run)
    whole_nodes = ("--nodes=3", "--ntasks-per-node=1", "--cpus-per-task=2")
    urgent = ("sbatch", "--partition=urgent", *whole_nodes, "--output=/dev/null", "--wrap", "srun sleep 1")
    slurm.wait(run, lambda: "loading torch" in run.output())
    slurm(*urgent)
    slurm.wait(run, lambda: run.steps() and run.steps()[-1] >= 30, job=job)
    assert "Restarts=1" in slurm("scontrol", "show", "job", job)
    slurm(*urgent)
    slurm.finish(run, job)
    assert "Restarts=2" in slurm("scontrol", "show", "job", job)
    assert not (run.path / "failures.txt").exists()
    assert same(run, undisturbed)


def test_scancel_stops_in_order_and_is_not_queued_again(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "cancelled")
    slurm("scancel", job)
    slurm.wait(run, lambda: slurm.ended(job))
    assert slurm.state(job) == "CANCELLED"
    assert run.status()["state"] == "stopped"
    slurm.finish(run, slurm.submit(run))
    assert same(run, undisturbed)


def test_the_stop_file_ends_the_job_for_good(slurm: Slurm, undisturbed: Run) -> None:
    """What waits for the end of the run does not begin. A start that fails at once is no such end, but a failure; and the run
    goes on with another number of nodes."""
    run, job = begin(slurm, "elastic")
    (run.path / "stop").touch()
    slurm("scancel", "--batch", "--signal=USR1", job)  # that the time ends, too, makes no difference
    slurm.wait(run, lambda: slurm.ended(job))
    assert "JobState=FAILED" in (shown := slurm("scontrol", "show", "job", job)) and "ExitCode=3:0" in shown
    assert run.status()["state"] == "stopped"

    (broken := slurm.folder / "bin" / "python").parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    job = slurm.submit(run, max_failures=1, folder=str(broken.parent))
    slurm.wait(run, lambda: slurm.ended(job))
    assert "ExitCode=1:0" in slurm("scontrol", "show", "job", job)
    assert "given up: 1 failures" in run.output()
    slurm.finish(run, slurm.submit(run, nodes=1))
    ours, theirs = run.history(), undisturbed.history()
    assert [samples for _, samples in ours.values()] == [samples for _, samples in theirs.values()]
    assert [loss for loss, _ in ours.values()] == pytest.approx([loss for loss, _ in theirs.values()], rel=1e-4)


def test_a_second_job_does_not_disturb_the_first(slurm: Slurm) -> None:
    run = slurm.run("twice")
    first = slurm.submit(run, nodes=1)
    slurm.wait(run, lambda: "loading torch" in run.output())  # two that start at once would race for being the first
    second = slurm("sbatch", "--parsable", run.path / "train.sbatch")
    slurm.wait(run, lambda: slurm.ended(second))
    assert f"job {second}.0: another job is at work on {run.path}" in run.output()
    slurm.wait(run, run.steps)
    refused = subprocess.run(slurm.command(run), capture_output=True, text=True, env=slurm.environ, check=False)
    assert refused.returncode == 1 and "in use by" in refused.stderr
    slurm.finish(run, first)


def test_a_job_outlasts_its_own_former_life(slurm: Slurm) -> None:
    """As on a node that Slurm has lost, where it still runs."""
    run = slurm.run("lost", steps=30)
    job = slurm.submit(run, nodes=1)
    slurm.wait(run, run.steps)
    slurm("scontrol", "requeue", job)
    with (run.path / "job.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        slurm.wait(run, lambda: "waits for it, 15 minutes at most" in run.output(), job=job)
    slurm.finish(run, job)


def test_a_killed_launcher_costs_the_node_its_place(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "launcher")
    (launcher,) = slurm.processes("node1", "launcher.launch")
    os.kill(launcher, signal.SIGKILL)
    slurm.finish(run, job)
    assert same(run, undisturbed)
    assert "ExcNodeList=node1" in slurm("scontrol", "show", "job", job)


def test_a_killed_process_is_named_first(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "killed")
    launcher = slurm.processes("node1", "launcher.launch")
    (worker,) = (pid for pid in slurm.processes("node1", "vitscale.train\0") if pid not in launcher)
    os.kill(worker, signal.SIGKILL)
    slurm.wait(run, lambda: (run.path / "failures.txt").exists())
    assert "rank 1 on node1" in (run.path / "failures.txt").read_text()
    slurm.finish(run, job)
    assert same(run, undisturbed)


def test_a_dead_node(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "dead")
    for process in slurm.processes("node0", ""):  # that of the job's script too
        os.kill(process, signal.SIGKILL)
    slurm.finish(run, job)
    subprocess.run([CLUSTER_SH, "mend", slurm.folder, "node0"], check=True)
    assert same(run, undisturbed)


def test_a_cut_cable(slurm: Slurm, undisturbed: Run) -> None:
    run, job = begin(slurm, "cable")
    subprocess.run([CLUSTER_SH, "cut", slurm.folder, "node1"], check=True)
    slurm.wait(run, lambda: (run.path / "failures.txt").exists() or slurm.state(job) == "PENDING")
    subprocess.run([CLUSTER_SH, "mend", slurm.folder, "node1"], check=True)
    slurm.finish(run, job)
    assert same(run, undisturbed)


def test_a_finished_run_ends_chained_jobs_in_seconds(slurm: Slurm, undisturbed: Run) -> None:
    script = undisturbed.path / "train.sbatch"
    job = slurm("sbatch", "--parsable", "--array=1-3%1", "--output", str(slurm.folder / "chain-%a.log"), script)
    slurm.wait(undisturbed, lambda: not slurm("squeue", "--noheader", "--job", job), within_s=30)
    for number in (1, 2, 3):
        assert "is finished; nothing to do" in (slurm.folder / f"chain-{number}.log").read_text()
