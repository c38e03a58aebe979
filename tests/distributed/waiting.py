"""How much Python training waits for where a checkpoint begins, after few and many evaluations and bad steps: as JSON."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from work import bytecodes

from vitscale.config import RunConfig
from vitscale.model.build import build
from vitscale.modelinfo import ModelInfo
from vitscale.rundir import RunDir
from vitscale.saving import Saver
from vitscale.state import TrainState
from vitscale.train import build_engine
from vitscale.world import World, end_process

METRICS = {"eval/top1": 0.5, "eval/top5": 0.75, "eval/loss": 1.25}


def main(folder: str) -> None:
    model = {"patch_size": 8, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 16, "image_size": 16, "num_classes": 3}
    values: dict = {"name": "growth", "runs": folder, "model": model, "data": {"train": {"manifest": "none"}}}
    values |= {"train": {"global_batch": 1, "total": {"steps": 1}}, "optim": {"lr": 1e-3}}
    cfg = RunConfig.model_validate({**values, "hardware": {"device": "cpu", "precision": "fp32"}})
    run = RunDir(cfg)
    run.checkpoints.mkdir(parents=True)
    run.recipe.touch()
    run.model_info.write_text(ModelInfo.of(cfg.model, cfg.data, []).dump())
    with (
        World(cfg.hardware, seed=0) as world,
        Saver(run, build_engine(build(cfg.model), cfg, world), cfg.checkpoint, 0) as saver,
    ):
        print(json.dumps({number: save(run, saver, number) for number in (1, 5, 500)}))  # the first opens what is opened once


def save(run: RunDir, saver: Saver, number: int) -> dict[str, int]:
    state = TrainState(step=number, bad_steps=list(range(number)))
    state.scores = {f"step_{step:08d}": METRICS for step in range(number)}
    work = bytecodes(lambda: saver.save(state, last=False))
    state.scores["later"] = METRICS  # training goes on
    state.bad_steps.append(number)
    saver.settle(last=True)
    found = TrainState.parse((run.checkpoints / state.name / "state.json").read_text())
    return {"work": work, "scores": len(found.scores), "bad_steps": len(found.bad_steps)}


if __name__ == "__main__":
    main(sys.argv[1])
    end_process(0)
