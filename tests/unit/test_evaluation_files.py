"""An evaluation's files in a run directory, also where they cannot be written."""

import torch
from einops import repeat

from data_pipeline.loader import Batch
from data_pipeline.order import Slots
from vitscale.duration import Duration
from vitscale.figures.due import begins_time
from vitscale.loop import write_tallies
from vitscale.modelinfo import ModelInfo
from vitscale.rundir import RunDir
from vitscale.tally import Tally


def test_without_room_for_files_there_is_a_warning_and_the_scores_stay(config, capsys):
    cfg = config()
    run = RunDir(cfg)
    run.path.mkdir(parents=True)
    run.model_info.write_text(ModelInfo.of(cfg.model, cfg.data, ["cat", "dog", "owl"]).dump())
    labels, none = torch.arange(3), torch.zeros(3)
    images = repeat(labels.to(torch.uint8), "b -> b 8 8 3")
    tally = Tally(3, torch.device("cpu"))
    tally.add(
        Batch(images, labels, none, none, none, none, none, torch.ones(3), Slots(labels.numpy(), labels.numpy())), torch.eye(3)
    )
    run.artifacts.write_text("a file where a folder should be")
    write_tallies({"eval": tally, "eval_ema": tally}, run, 7)
    assert capsys.readouterr().out.startswith(f"warning: {run.artifacts}: accuracy by class cannot be written (")
    assert tally.metrics["top1"] == 1
    run.artifacts.unlink()
    write_tallies({"eval": tally, "eval_ema": tally}, run, 7)
    found = {str(path.relative_to(run.artifacts)) for path in run.artifacts.rglob("*.csv")}
    names = ("per_class.csv", "confusion.csv")
    assert found == {f"{prefix}/step_00000007/{name}" for prefix in ("eval", "eval_ema") for name in names}
    assert (run.artifacts / "eval/step_00000007/per_class.csv").read_text().splitlines()[2] == "dog,1,1,1.0"


def test_a_checkpoint_is_drawn_when_it_begins_a_time(config, shards):
    cfg = config(f"data.train.manifest={shards['train'].location}")  # 20 images
    every = Duration(samples=10 * cfg.train.global_batch)
    found = [begins_time(cfg, every, before, step) for before, step in ((0, 9), (0, 10), (0, 12), (12, 19), (12, 20), (20, 20))]
    assert found == [False, True, True, False, True, False]
