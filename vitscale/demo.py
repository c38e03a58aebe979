"""The demo: the main job end to end on handwritten digits, through every real part, in a few minutes on two cores."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from data_pipeline.build import build
from data_pipeline.manifest import Manifest
from data_pipeline.sources import digits
from data_pipeline.stream import Shards
from launcher.local import count_gpus
from vitscale.cli import train
from vitscale.errors import LaunchError
from vitscale.progress import say
from vitscale.pull import pull
from vitscale.recipe import load
from vitscale.rundir import RunDir
from vitscale.tracking import sqlite_path, tracking_uri

SHARD_SAMPLES = [400, 300, 250, 200, 150, 138]  # uneven on purpose
VAL_FRACTION = 0.2
NUM_PREDICTED = 5


class Stage(NamedTuple):
    """One training of the demo."""

    title: str
    recipe: str
    overrides: list[str]


def demo(device: str, seed: int, runs: str) -> int:
    """Build the data, pretrain, fine-tune twice, pull, predict, report. What is done already is not done again."""
    began = time.monotonic()
    root = Path(runs).absolute()
    procs = min(2, count_gpus(os.environ)) if device == "cuda" else 2
    if not procs:
        raise LaunchError("demo: --device cuda, but no GPU is visible; use --device cpu")
    say(f"demo on {device} with {procs} processes, everything under {root}")
    val = build(digits(), root / "data" / "digits", VAL_FRACTION, SHARD_SAMPLES, seed=0)["val"]
    todo = stages(root, device, seed)
    for stage in todo:
        if train(stage.recipe, stage.overrides, procs):
            raise LaunchError(f"demo: {stage.title}: training failed, see above; run the demo again to go on from where it was")
        if RunDir(load(stage.recipe, stage.overrides)).status["state"] != "finished":
            say("demo: stopped; run it again to go on from here")
            return 130
    uri, name = tracking_uri(None, root), model_name(seed)
    champion = f"models:/{name}@champion"
    folder = root / "demo" / name
    say(f"pulling {champion}")
    shutil.rmtree(folder, ignore_errors=True)
    pull(champion, uri, folder)
    say(f"it is in {folder}; what it says of held-out images:")
    for line in predict_some(val, folder, root / "demo" / "images"):
        say(f"  {line}")
    report(todo, champion, uri, time.monotonic() - began)
    return 0


def model_name(seed: int) -> str:
    return f"digits-vit-seed{seed}" if seed else "digits-vit"


def stages(root: Path, device: str, seed: int) -> list[Stage]:
    """The three trainings, with names of their own for another seed."""
    suffix = f"-seed{seed}" if seed else ""
    common = [
        f"runs={json.dumps(str(root))}",
        f"data.train.manifest={json.dumps(f'{root}/data/digits/train.json')}",
        f"data.val.manifest={json.dumps(f'{root}/data/digits/val.json')}",
        f"seed={seed}",
        f"hardware.device={device}",
    ]
    published = f"publish.name={model_name(seed)}"
    control = ["init.pos_embed=reinit", "publish=null"]
    pretrained = f"init.from=models:/{model_name(seed)}@pretrained"

    def stage(title: str, recipe: str, name: str, *more: str) -> Stage:
        return Stage(title, f"recipes/demo/{recipe}.yaml", [*common, f"name={name}{suffix}", *more])

    return [
        stage("pretrained at 32 px", "pretrain", "digits-pretrain", published),
        stage("fine-tuned at 48 px, position embedding interpolated", "finetune", "digits-finetune", published, pretrained),
        stage("fine-tuned at 48 px, position embedding new", "finetune", "digits-finetune-reinit", pretrained, *control),
    ]


def predict_some(val: Manifest, model: Path, folder: Path) -> Iterator[str]:
    """Write a few held-out images as files, named by their true class; and what the model says of each."""
    from vitscale.pretrained import load_pretrained, open_image  # torch, after the trainings

    shards, loaded = Shards(val), load_pretrained(model)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, len(shards), len(shards) // NUM_PREDICTED)[:NUM_PREDICTED]:
        raw = shards.read(number)
        path = folder / f"{raw.key}-is-a-{val.classes[raw.label]}.jpg"
        path.write_bytes(raw.image)
        (guesses,) = loaded.predict([open_image(path)], top=3)
        yield "  ".join(map(str, [path, *guesses]))


def report(done: list[Stage], champion: str, uri: str, seconds: float) -> None:
    """The table, how to open MLflow, and one JSON object as the last line."""
    rows = [(stage, RunDir(load(stage.recipe, stage.overrides))) for stage in done]
    say("")
    say(f"{'':<54}{'top-1':>8}{'images/s':>10}  model")
    for stage, run in rows:
        metrics = run.status["metrics"]
        model = run.status["model"] or "not published"
        say(f"{stage.title:<54}{metrics['eval/top1']:>8.4f}{metrics['speed/images_per_s']:>10,.0f}  {model}")
    mlflow = Path(sys.executable).with_name("mlflow")
    page = f"{mlflow} server --backend-store-uri '{uri}' --port 5001; http://127.0.0.1:5001" if sqlite_path(uri) else uri
    say(f"{timedelta(seconds=round(seconds))} in all. MLflow page: {page}")
    pretrain, finetune = (run.status["metrics"]["eval/top1"] for _, run in rows[:2])
    summary = {
        "pretrain_top1": round(pretrain, 4),
        "finetune_top1": round(finetune, 4),
        "model": champion,
        "runs": [run.mlflow_run_id.read_text() for _, run in rows],
        "seconds": round(seconds, 1),
    }
    say(json.dumps(summary))
