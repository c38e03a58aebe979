"""Benchmarks that lean on the insides still run, on as little as they take; those that take minutes even so are left out.
What they measure is for people to judge."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from launching import clean_environment

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = {  # command, and numbers that it prints at least
    "bench_loop.py --procs 1": 5,
    "bench_zero.py --procs 1 --rounds 2": 20,
    "bench_growth.py sections metrics": 20,
    "bench_tracking.py --steps 50 --states healthy": 3,
}


@pytest.mark.slow
@pytest.mark.parametrize("command", SMALL)
def test_it_runs(tmp_path: Path, command: str) -> None:
    script, *words = command.split()
    call = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(call, cwd=tmp_path, env=clean_environment(), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"\b\d+(?:\.\d+)?\b", done.stdout)) >= SMALL[command], done.stdout
