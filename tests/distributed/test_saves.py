"""Checkpoints by real processes: every ZeRO stage reads what every other wrote, and a disk that is full harms nothing."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from launching import Tiny, launch, make_tiny
from safetensors.torch import load_file

from vitscale import load_pretrained
from vitscale.saving import SLACK_BYTES
from vitscale.sums import verify

SAVES = Path(__file__).with_name("saves.py")
LIMIT = 10_000


def find(cases: str, procs: int, tiny: Tiny, *overrides: str) -> tuple[dict, str]:
    """What rank 0 found, by case, and what all ranks said."""
    out = tiny.recipe.with_suffix(".json")
    done = launch(SAVES, procs, cases, out, tiny.recipe, *overrides)
    assert done.returncode == 0, done.stderr[-14000:]
    return json.loads(out.read_text()), done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, digits_dir: Path) -> tuple[Tiny, dict, str]:
    tiny = make_tiny(tmp_path_factory.mktemp("saves"), digits_dir)
    return tiny, *find("walk,full,parts", 2, tiny)


def test_every_stage_reads_what_every_other_wrote(found: tuple[Tiny, dict, str]) -> None:
    walk = found[1]["walk"]
    assert walk["same"] == [True] * 13
    kinds = ["ema torch.float32", "exp_avg torch.bfloat16", "exp_avg_sq torch.float32", "weight torch.float32"]
    assert walk["kinds"] == kinds
    assert walk["moved"]
    beside = ["model.json", "recipe.yaml", "state.json", "weights.safetensors"]
    assert walk["files"] == ["SHA256SUMS", "ema.safetensors", "engine", *beside]


@pytest.mark.parametrize(("procs", "stage"), [(3, 3), pytest.param(1, 1, marks=pytest.mark.slow)])
def test_any_number_of_processes_reads_what_two_wrote(found: tuple[Tiny, dict, str], procs: int, stage: int) -> None:
    result, _ = find("carried", procs, found[0], f"hardware.zero_stage={stage}")
    assert result["carried"] == {"same": True, "ranks": procs}


def test_a_save_that_fails_leaves_the_one_before_and_no_trace(found: tuple[Tiny, dict, str]) -> None:
    _, result, said = found
    full = result["full"]
    assert full["left"] == ["step_00000001"] and full["sound"]
    assert "step_00000003: not written: rank 1: [Errno 27] File too large; the checkpoints before it are" in full["raised"]
    assert "warning: " in said and "the next save tries again" in said
    assert full["after"] == ["step_00000001", "step_00000004"]


def test_what_a_checkpoint_takes_is_known_before(found: tuple[Tiny, dict, str]) -> None:
    """Weights and average of four bytes for each of 29,000 parameters, and the ranks' parts; headers are within the slack."""
    assert SLACK_BYTES - 20_000 < found[1]["parts"]["spare"] < SLACK_BYTES


def test_weights_in_parts_are_the_same_weights(found: tuple[Tiny, dict, str]) -> None:
    in_parts = Path(found[1]["parts"]["path"])
    whole = in_parts.with_name("step_00000003")
    for stem in ("weights", "ema"):
        index = json.loads((in_parts / f"{stem}.safetensors.index.json").read_text())
        expected = load_file(whole / f"{stem}.safetensors")
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
        assert index["weight_map"].keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(load_file(in_parts / index["weight_map"][name])[name], tensor)
        for part in set(index["weight_map"].values()):
            tensors = load_file(in_parts / part)
            assert sum(tensor.nbytes for tensor in tensors.values()) <= LIMIT or len(tensors) == 1
    assert verify(in_parts) == []
    image = torch.randn(2, 3, 16, 16)
    by_parts, by_whole, averaged = (load_pretrained(p).model(image) for p in (in_parts, whole, whole / "ema.safetensors"))
    assert torch.equal(by_parts, by_whole)
    assert not torch.equal(averaged, by_whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[None]:
    folder = tmp_path / "runs"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
@pytest.mark.usefixtures("small_disk")
def test_what_the_disk_will_not_hold_is_not_begun(tiny: Tiny) -> None:
    result, said = find("no_room", 2, tiny)
    assert result["no_room"]["left"] == ["step_00000001"]
    for text in (said, result["no_room"]["raised"]):
        assert "more than the" in text and "free" in text
