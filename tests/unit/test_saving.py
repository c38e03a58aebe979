"""Parts of a checkpoint: counted, measured, and refused by a disk before they are written."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from vitscale.saving import Save, shares
from vitscale.state import TrainState
from vitscale.weights.sharded import write_file


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Two ranks' parts with their notes."""
    save = Save(tmp_path / "step_00000001", TrainState(), [10, 20])
    engine = save.partial / "engine"
    engine.mkdir(parents=True)
    for rank, num_bytes in enumerate(save.rank_bytes):
        (engine / f"rank_{rank:05d}.safetensors").write_bytes(bytes(num_bytes))
        (engine / f"rank_{rank:05d}.note").write_text(f"sum{rank}")
    return save


def test_parts_are_as_long_as_they_were_written(save: Save) -> None:
    assert shares(save, 1) == {"engine/rank_00000.safetensors": "sum0", "engine/rank_00001.safetensors": "sum1"}
    for num_bytes in (19, 21):
        (save.partial / "engine" / "rank_00001.safetensors").write_bytes(bytes(num_bytes))
        with pytest.raises(OSError, match=rf"rank_00001.safetensors: {num_bytes} bytes, 20 were written"):
            shares(save, 1)


def test_a_rank_that_could_not_write_is_named(save: Save) -> None:
    (save.partial / "engine" / "rank_00001.note").write_text("rank 1: no space")
    with pytest.raises(OSError, match="rank 1: no space"):
        shares(save, 1)


def test_a_rank_that_writes_nothing_is_waited_for_in_vain(save: Save) -> None:
    (save.partial / "engine" / "rank_00000.note").unlink()
    with pytest.raises(TimeoutError, match=r"only 1 of 2 processes have written their part within 0 s"):
        shares(save, 0.05)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_what_a_disk_will_not_hold_is_refused_before_a_byte_is_written(small_disk: Path) -> None:
    asked = []

    def tensors() -> Iterator[torch.Tensor]:
        asked.append(1)
        yield torch.zeros(200_000)

    write_file(small_disk / "fits", b"head", tensors(), 800_000)
    assert (small_disk / "fits").stat().st_size == 800_004 and len(asked) == 1
    with pytest.raises(OSError) as caught:
        write_file(small_disk / "does not", b"head", tensors(), 800_000)
    assert caught.value.errno == errno.ENOSPC
    assert len(asked) == 1 and (small_disk / "does not").stat().st_size == 0
