"""slurm/local/cluster.sh itself."""

import os
import subprocess
from pathlib import Path

import pytest
from conftest import CLUSTER_SH, Slurm

pytestmark = pytest.mark.slurm


def test_a_second_cluster_of_this_machine_is_one_of_its_own(slurm: Slurm, tmp_path: Path) -> None:
    """As where two checkouts run these tests, or one was killed and left its own behind: its hosts have the same names."""
    subprocess.run([CLUSTER_SH, "up", tmp_path, "2"], check=True, timeout=120)
    try:
        environ = os.environ | {"SLURM_CONF": str(tmp_path / "slurm.conf")}
        job = ["sbatch", "--wait", "--nodes=2", "--output", tmp_path / "said", "--wrap", "srun hostname; getent hosts node1"]
        subprocess.run(job, check=True, env=environ, timeout=60)
        *hosts, address = (tmp_path / "said").read_text().split("\n")[:3]
        assert sorted(hosts) == ["node0", "node1"]
        assert address.split()[0] in (tmp_path / "slurm.conf").read_text()
        assert address.split()[0] not in (slurm.folder / "slurm.conf").read_text()
        again = subprocess.run([CLUSTER_SH, "up", tmp_path, "2"], capture_output=True, text=True, check=False)
        assert again.returncode == 1 and "was not taken down" in again.stderr
    finally:
        subprocess.run([CLUSTER_SH, "down", tmp_path], check=True, timeout=60)
    assert len(slurm("sinfo", "--noheader", "--Node", "--partition", "main").splitlines()) == 3
