"""Pictures of runs: their curves, and accuracy against compute, from run directories or from MLflow."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import EngFormatter

from vitscale import recipe
from vitscale.config import RunConfig
from vitscale.delivery import DIRECTORY_TAG
from vitscale.errors import TrackingError
from vitscale.figures.drawing import COLOURS, panels, save
from vitscale.history import read_log
from vitscale.model.flops import train_flops
from vitscale.tracking import connect, without_secrets

LOSS, ACCURACY = "train/loss", "eval/top1"
ORIGIN_TAG = "vitscale.origin.run_id"
MAX_RUNS = 10_000


class Run(NamedTuple):
    """What a run has measured."""

    cfg: RunConfig
    points: dict[str, list[tuple[int, float]]]  # LOSS and ACCURACY: step and value
    run_id: str | None  # in MLflow
    origin_id: str | None  # of the run whose weights it started from

    def curve(self, metric: str) -> np.ndarray:
        """(points, 2): images seen and value."""
        return np.array(sorted(self.points[metric])).reshape(-1, 2) * [self.cfg.train.global_batch, 1]


def draw_runs(sources: Sequence[str], uri: str, out: Path) -> Iterator[str]:
    """Each picture's file, or why a run is not in it."""
    runs = [run for source in sources for run in read_runs(source, uri)]
    yield save(curves(runs), out / "curves")
    points = []
    for run in runs:
        if (exaflops := pretraining_exaflops(run, runs)) is None or not run.points[ACCURACY]:
            yield f"compute: without {run.cfg.name}: it has no {ACCURACY}, or the run that it started from is not given"
        else:
            points.append((run.cfg.name, exaflops, 100 * run.curve(ACCURACY)[-1, 1]))
    if points:
        yield save(compute(points), out / "compute")


def pretraining_exaflops(run: Run, others: Sequence[Run]) -> float | None:
    """10^18 operations of a run, or of that among the others whose weights it started from; None where those are not known."""
    if run.cfg.init:
        origin = next((other for other in others if other.run_id and other.run_id == run.origin_id), None)
        return pretraining_exaflops(origin, others) if origin else None
    return train_flops(run.cfg.model) * run.curve(LOSS)[-1, 0] / 1e18 if run.points[LOSS] else None


def curves(runs: Sequence[Run]) -> Figure:
    """Loss and accuracy over images seen."""
    figure, axes = panels("Training", "Images seen: repetitions count.", 9.6, 4, 2)
    for ax, metric in zip(axes, (LOSS, ACCURACY), strict=True):
        ax.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * cycler(color=COLOURS))
        for run in runs:
            points = run.curve(metric)
            ax.plot(*points.T, marker="." if len(points) < 30 else "", label=run.cfg.name)
        ax.set(xlabel="Images seen", ylabel=metric, yscale="log" if metric == LOSS else "linear")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    return figure


def compute(points: Sequence[tuple[str, float, float]]) -> Figure:
    """Figure 5: runs, each with the exaFLOPs of its pre-training and its accuracy in percent."""
    caption = "Compute: forward and backward passes over all images seen in pre-training, without fine-tuning."
    figure, (ax,) = panels("Performance versus pre-training compute", caption, 6.5, 4.2)
    ax.set_prop_cycle(cycler(marker=["o", "s", "^"]) * cycler(color=COLOURS))
    for name, *point in points:
        ax.plot(*point, linestyle="", markersize=8, label=name)
    ax.set(xscale="log", xlabel="Total pre-training compute (exaFLOPs)", ylabel="Top-1 accuracy (%)")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def read_runs(source: str, uri: str) -> list[Run]:
    """The run in a directory, `runs:/RUN_ID`, or all of `experiments:/NAME`; TrackingError where there is none."""
    scheme, is_uri, rest = source.partition(":/")
    if not is_uri:
        return [of_directory(Path(source))]
    try:
        client = connect(uri, create=False)
        if scheme == "runs":
            return [of_mlflow(client, rest)]
        if (experiment := client.get_experiment_by_name(rest)) is None:
            raise TrackingError("no experiment has this name")
        query = f"tags.`{DIRECTORY_TAG}` != ''"  # others may have put runs there, too
        found = client.search_runs([experiment.experiment_id], query, max_results=MAX_RUNS)
        return [of_mlflow(client, run.info.run_id) for run in found if LOSS in run.data.metrics]
    except Exception as error:  # MLflow's exceptions come with the scheme: REST, SQL, files
        raise TrackingError(
            without_secrets(f"{source}: not found in MLflow at {uri} ({error}); give a run directory or runs:/RUN_ID")
        ) from error


def of_directory(path: Path) -> Run:
    if not (path / "metrics.jsonl").is_file():
        raise TrackingError(f"{path}: not a run directory (no metrics.jsonl in it); give one, or runs:/RUN_ID")
    lines, origin, run_id = read_log(path / "metrics.jsonl"), path / "init" / "origin.json", path / "mlflow_run_id"
    return Run(
        recipe.load(path / "recipe.yaml"),
        {key: [(line["step"], line["metrics"][key]) for line in lines if key in line["metrics"]] for key in (LOSS, ACCURACY)},
        run_id.read_text() if run_id.is_file() else None,
        json.loads(origin.read_text())["run_id"] if origin.is_file() else None,
    )


def of_mlflow(client: Any, run_id: str) -> Run:
    tags = client.get_run(run_id).data.tags
    points = {key: [(p.step, p.value) for p in client.get_metric_history(run_id, key)] for key in (LOSS, ACCURACY)}
    with tempfile.TemporaryDirectory() as folder:
        cfg = recipe.load(client.download_artifacts(run_id, "recipe.yaml", folder))
    return Run(cfg, points, run_id, tags.get(ORIGIN_TAG))
