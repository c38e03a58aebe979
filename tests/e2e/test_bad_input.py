"""What a user gets wrong is said in one paragraph, with a non-zero exit, before any process starts; nothing written is lost."""

import json
import shutil
import socket
from pathlib import Path

import pytest
from launching import Tiny, vitscale


def refuse(tiny: Tiny, *words: str, procs: int = 2, naming: list[str]) -> None:
    """`vitscale train` fails at once, names these things, and leaves no trace of a start."""
    done = vitscale("train", tiny.recipe, "--procs", procs, *words)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in naming:
        assert part in done.stderr
    assert not (tiny.run_dir() / "status.json").exists()


@pytest.mark.parametrize(
    ("override", "naming"),
    [
        ("train.globl_batch=48", ["train.globl_batch", "did you mean global_batch?"]),
        ("optim.lr=-1", ["optim.lr", "greater than 0", "-1"]),
        ("optim.lr=fast", ["optim.lr", "'fast'"]),
        ("model.image_size=20", ["image_size 20", "patch_size 8", "16 or 24"]),
        ("hardware.micro_batch=7", ["micro_batch", "7", "24 images per process", "12"]),
        ("data.lanes=5", ["data.lanes 5", "global_batch 48"]),
        ("data.mix_group=5", ["mix_group", "5", "24"]),
        ("model.num_classes=7", ["10 classes", "num_classes is 7"]),
        ("train.total={steps: 5, epochs: 2}", ["train.total", "steps, epochs given"]),
        ("train.total.epochs=0.01", ["train.total", "no step of 48 images"]),
        ("init.from=models:/nobody@champion", ["no MLflow store at", "MLFLOW_TRACKING_URI"]),
        ("init.from=no/such/checkpoint", ["no/such/checkpoint", "neither a checkpoint directory nor a file of weights"]),
        ("data.train.samples=401", ["data.train.samples", "401", "400"]),
        ("data.train.manifest=nowhere.json", ["nowhere.json", "no manifest to read", "vitscale data build"]),
        ("data.train={manifest: a, weights: 2}", ["unknown key data.train.weights", "did you mean weight?"]),
        ("data.train=[{manifest: a, weight: 2.0}, {manifest: b}]", ["every source a weight, or none"]),
    ],
)
def test_a_wrong_value(tiny: Tiny, override: str, naming: list[str]) -> None:
    refuse(tiny, override, naming=naming)


def test_a_number_of_processes_that_does_not_divide(tiny: Tiny) -> None:
    refuse(tiny, procs=5, naming=["48 lanes", "5 processes", "4 or 6 or 8"])


def test_a_port_in_use(tiny: Tiny) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuse(tiny, "--port", str(port), naming=[f"--port {port}", "in use"])


def own_shards(tiny: Tiny, digits_dir: Path, tmp_path: Path) -> Path:
    data = tmp_path / "data"
    shutil.copytree(digits_dir, data)
    tiny.recipe.write_text(tiny.recipe.read_text().replace(str(digits_dir), str(data)))
    return data


def test_a_missing_shard(tiny: Tiny, digits_dir: Path, tmp_path: Path) -> None:
    data = own_shards(tiny, digits_dir, tmp_path)
    (data / "train-00002.tar").unlink()
    refuse(tiny, naming=["train.json", "train-00002.tar: No such file"])


def test_a_truncated_shard(tiny: Tiny, digits_dir: Path, tmp_path: Path) -> None:
    shard = own_shards(tiny, digits_dir, tmp_path) / "train-00001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    refuse(tiny, naming=["train-00001.tar", f"bytes {shard.stat().st_size} for {shard.stat().st_size + 512}"])


def test_a_manifest_that_does_not_match_its_shard(tiny: Tiny, digits_dir: Path, tmp_path: Path) -> None:
    manifest = own_shards(tiny, digits_dir, tmp_path) / "train.json"
    content = json.loads(manifest.read_text())
    content["shards"]["samples"][0] += 1
    manifest.write_text(json.dumps(content))
    refuse(tiny, naming=["train-00000.idx", "samples 150 for 151"])


def test_a_damaged_image_is_named_once_and_no_other_process_adds_to_it(tiny: Tiny, digits_dir: Path, tmp_path: Path) -> None:
    shard = own_shards(tiny, digits_dir, tmp_path) / "train-00002.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd8\xff") + 300] ^= 1
    shard.write_bytes(content)
    done = vitscale("train", tiny.recipe, "--procs", "2")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "train-00002.tar: sample digit" in done.stderr and "CRC-32" in done.stderr
    assert "data.bad_samples.policy=replace" in done.stderr


@pytest.mark.slow
def test_pretrained_weights_of_another_architecture_and_a_started_run_with_another_recipe(tiny: Tiny) -> None:
    short = ("train.total.steps=2", "optim.schedule.warmup.steps=0")
    first = vitscale("train", tiny.recipe, *short, "eval.every=null")
    assert first.returncode == 0, first.stdout + first.stderr
    checkpoint = tiny.run_dir() / "checkpoints" / "step_00000002"
    kept = sorted((path, path.stat().st_mtime_ns) for path in tiny.run_dir().rglob("*"))

    other = vitscale("train", tiny.recipe, f"init.from={checkpoint}", "model.width=64", "name=other")
    assert other.returncode == 1
    assert "width: 32 here, 64 there" in other.stderr and other.stderr.count("\n") == 1

    changed = vitscale("train", tiny.recipe, *short, "optim.lr=0.5")
    assert changed.returncode == 1
    assert "optim.lr was 0.001, is 0.5" in changed.stderr and "name=" in changed.stderr

    (checkpoint / "weights.safetensors").write_bytes(b"damaged")
    damaged = vitscale("train", tiny.recipe, f"init.from={checkpoint}", "name=third")
    assert damaged.returncode == 1
    assert "weights.safetensors differs" in damaged.stderr

    now = sorted((path, path.stat().st_mtime_ns) for path in tiny.run_dir().rglob("*"))
    assert [path for path, _ in now] == [path for path, _ in kept]
