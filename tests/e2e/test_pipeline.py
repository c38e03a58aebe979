"""The main job through every real part, on the demo's recipes cut short: build, pretrain, publish, fine-tune, pull, predict."""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from launching import vitscale
from safetensors.torch import load_file

from vitscale import load_pretrained
from vitscale.figures.due import draw_due
from vitscale.figures.runs import draw_runs, of_directory, pretraining_exaflops
from vitscale.history import read_log
from vitscale.sums import verify

SHORT = ["train.total.epochs=2", "eval.every.epochs=1", "checkpoint.every.epochs=1", "optim.schedule.warmup.steps=5"]
SHORT += ["tracking.figures_every.epochs=1"]
PRETRAIN = ("train", "recipes/demo/pretrain.yaml", "--procs", "2", *SHORT)
FINETUNE = ("train", "recipes/demo/finetune.yaml", "--procs", "2", *SHORT)


class Attempt(NamedTuple):
    """A pretraining without an MLflow server: in which folder, what it said, and when its last checkpoint was written."""

    folder: Path
    stderr: str
    trained_at: int


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """A user has built the digits and pretrained while the server was away."""
    here = tmp_path_factory.mktemp("workplace")
    sizes = ["400", "300", "250", "200", "150", "138"]
    succeed("data", "build", "digits", "--out", "runs/data/digits", "--shard-samples", *sizes, cwd=here)
    done = vitscale(*PRETRAIN, "tracking.uri=http://127.0.0.1:9", cwd=here)
    assert done.returncode == 1, done.stdout + done.stderr
    return Attempt(here, done.stderr, newest(here, "digits-pretrain").stat().st_mtime_ns)


@pytest.fixture(scope="module")
def workplace(away: Attempt) -> Path:
    """The folder after a second start, which publishes, and fine-tuning."""
    succeed(*PRETRAIN, cwd=away.folder)
    succeed(*FINETUNE, cwd=away.folder)
    return away.folder


def succeed(*words: str, cwd: Path) -> None:
    done = vitscale(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr


def client(workplace: Path) -> mlflow.MlflowClient:
    uri = f"sqlite:///{workplace}/runs/mlflow.db"
    return mlflow.MlflowClient(uri, uri)


def run_id(workplace: Path, name: str) -> str:
    return (workplace / "runs" / name / "mlflow_run_id").read_text()


def test_fine_tuning_grew_the_grid_and_names_its_parent(workplace: Path) -> None:
    before = load_file(workplace / "runs/digits-finetune/init/weights.safetensors")
    after = load_file(newest(workplace, "digits-finetune") / "weights.safetensors")
    assert (before["pos_embed.table"].shape[1], after["pos_embed.table"].shape[1]) == (1 + 4 * 4, 1 + 6 * 6)
    child = client(workplace).get_run(run_id(workplace, "digits-finetune"))
    assert child.data.tags["vitscale.origin.run_id"] == run_id(workplace, "digits-pretrain")
    parent = client(workplace).get_run(run_id(workplace, "digits-pretrain"))
    assert parent.data.tags[f"vitscale.origin_of.{child.info.run_id}"] == "digits-finetune"
    made = client(workplace).search_logged_models([child.info.experiment_id])
    assert {model.model_id: model.source_run_id for model in made}[child.inputs.model_inputs[0].model_id] == parent.info.run_id


def test_every_metric_line_is_in_mlflow_once(workplace: Path) -> None:
    for name in ("digits-pretrain", "digits-finetune"):
        lines = [json.loads(line) for line in (workplace / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        expected = [(line["step"], line["metrics"]["train/loss"]) for line in lines if line["kind"] == "train"]
        history = client(workplace).get_metric_history(run_id(workplace, name), "train/loss")
        assert expected and [(m.step, m.value) for m in history] == expected
        assert client(workplace).get_run(run_id(workplace, name)).info.status == "FINISHED"


def test_validation_counts_every_held_out_image(workplace: Path) -> None:
    status = json.loads((workplace / "runs/digits-pretrain/status.json").read_text())
    assert status["state"] == "finished"
    assert status["metrics"]["eval/images"] == 359


def test_the_published_models_are_the_last_checkpoints(workplace: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{workplace}/runs/mlflow.db"
    words = ("pull", "models:/digits-vit@champion", "--to", tmp_path / "champion")
    done = vitscale(*words, cwd=tmp_path, MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    pulled = {"digits-finetune": tmp_path / "champion", "digits-pretrain": workplace / "runs/digits-finetune/init"}
    for name, copy in pulled.items():
        assert verify(copy) == []
        assert (copy / "weights.safetensors").read_bytes() == (newest(workplace, name) / "weights.safetensors").read_bytes()


def test_eval_of_the_pulled_model_equals_the_training_runs_own(workplace: Path) -> None:
    done = vitscale("eval", "models:/digits-vit@champion", "--data", "runs/data/digits/val.json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    own = json.loads((workplace / "runs/digits-finetune/status.json").read_text())["metrics"]
    found = json.loads(done.stdout)
    assert found["images"] == own["eval/images"]
    assert found["top1"] == own["eval/top1"]
    assert found["loss"] == pytest.approx(own["eval/loss"], rel=1e-5)


def test_an_evaluation_leaves_accuracy_by_class_and_due_pictures_are_drawn_once(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)  # manifests have relative paths
    run = workplace / "runs/digits-pretrain"
    steps = {line["step"]: line["metrics"] for line in read_log(run / "metrics.jsonl") if line["kind"] == "eval"}
    assert sorted(path.name for path in (run / "artifacts/eval").iterdir()) == [f"step_{step:08d}" for step in steps]
    for step, metrics in steps.items():
        with (run / f"artifacts/eval/step_{step:08d}/per_class.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert sum(int(row["images"]) for row in table) == metrics["eval/images"] == 359
        assert sum(int(row["right"]) for row in table) / 359 == metrics["eval/top1"]
    draw_due(run)
    drawn = {path: path.stat().st_mtime_ns for path in (run / "artifacts").rglob("*") if path.suffix in (".png", ".svg")}
    pictures = ("filters", "pos_embed", "attention_distance", "attention_rollout")
    expected = {f"figures/{newest(workplace, run.name).name}/{name}.{kind}" for name in pictures for kind in ("png", "svg")}
    expected |= {
        f"eval/step_{step:08d}/{name}" for step in steps for name in ("confusion.png", "confusion.svg", "predictions.png")
    }
    assert expected <= {str(path.relative_to(run / "artifacts")) for path in drawn}
    draw_due(run)
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    assert not list(run.glob(".figures*"))


def test_pictures_of_runs_are_the_same_from_their_directories_and_from_mlflow(workplace: Path, tmp_path: Path) -> None:
    names = ("digits-pretrain", "digits-finetune")
    stored = [f"runs:/{run_id(workplace, name)}" for name in names]
    succeed("figures", "--runs", *stored, "--out", str(tmp_path / "mlflow"), cwd=workplace)
    list(draw_runs([str(workplace / "runs" / name) for name in names], "", tmp_path / "directories"))
    for name in ("curves.png", "curves.svg", "compute.png", "compute.svg"):
        assert (tmp_path / "directories" / name).read_bytes() == (tmp_path / "mlflow" / name).read_bytes()
    runs = [of_directory(workplace / "runs" / name) for name in names]
    forward = 4 * ((4 * 64**2 + 2 * 64 * 256) * 17 + 2 * 17**2 * 64) + 16 * 192 * 64 + 640  # blocks, patches, head
    exaflops = (6 * forward - 2 * 16 * 192 * 64) * 128 * 22 / 1e18  # 22 steps of 128 images, both runs' pretraining
    assert [pretraining_exaflops(run, runs) for run in runs] == pytest.approx([exaflops] * 2)


def test_predict_says_what_the_model_says(workplace: Path, tmp_path: Path) -> None:
    image = tmp_path / "digit.jpg"
    image.write_bytes(first_held_out_image(workplace))
    done = vitscale("predict", newest(workplace, "digits-finetune"), image, "--top", "10", "--json", cwd=workplace)
    assert done.returncode == 0, done.stderr
    top = json.loads(done.stdout)["top"]
    assert sum(guess["probability"] for guess in top) == pytest.approx(1)
    loaded = load_pretrained(newest(workplace, "digits-finetune"))
    logits = loaded.model(loaded.transform(open_image(image))[None])
    assert top[0]["label"] == logits.argmax().item()


def test_a_finished_run_is_not_run_again(workplace: Path) -> None:
    before = (workplace / "runs/digits-finetune/metrics.jsonl").read_bytes()
    done = vitscale(*FINETUNE, cwd=workplace)
    assert done.returncode == 0
    assert "already finished" in done.stdout
    assert (workplace / "runs/digits-finetune/metrics.jsonl").read_bytes() == before


def newest(workplace: Path, name: str) -> Path:
    return max((workplace / "runs" / name / "checkpoints").glob("step_*"))


def first_held_out_image(workplace: Path) -> bytes:
    import tarfile

    with tarfile.open(workplace / "runs/data/digits/val-00000.tar") as tar:
        file = tar.extractfile(next(name for name in tar.getnames() if name.endswith(".jpg")))
        assert file
        return file.read()


def open_image(path: Path):
    from PIL import Image

    return Image.open(path)


def test_a_server_that_is_away_costs_no_training_and_the_next_start_publishes(workplace: Path, away: Attempt) -> None:
    assert "error: publish: MLflow at http://127.0.0.1:9 did not answer" in away.stderr and "Traceback" not in away.stderr
    assert newest(workplace, "digits-pretrain").stat().st_mtime_ns == away.trained_at
    version = client(workplace).get_model_version_by_alias("digits-vit", "pretrained")
    assert version.run_id == run_id(workplace, "digits-pretrain")
