"""What the ViT paper shows at scale, tried at a scale that two CPU cores allow: `python tests/benchmarks/proof.py NAME`.

Each proof is runs of recipes/proof/*.yaml with three seeds, one run on each core, all in the MLflow experiment `proof`. It goes
on where it was stopped, and ends with a table, docs/proof/NAME.json and docs/figures/proof_NAME.png.
"""

import argparse
import itertools
import json
import os
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

from vitscale import recipe
from vitscale.model.flops import train_flops

ROOT = Path(__file__).parents[2]
RECIPES, DATA, DIGITS, RUNS = Path("recipes/proof"), Path("runs/data/shapes"), Path("runs/data/digits"), Path("runs")
SEEDS = (0, 1, 2)
TRAIN_IMAGES, VAL_IMAGES, SHARD = 100_000, 2_000, 500


class Arm(NamedTuple):
    """A point of a plot: which curve it is on, where, and what is run for it. SEED in an override is the run's seed."""

    curve: str
    x: float | str
    overrides: Sequence[str]
    metric: str = "eval/top1"
    run: str = ""  # default: named after curve and x


class Proof(NamedTuple):
    claim: str
    arms: Sequence[Arm]
    xlabel: str = ""
    pretraining: Sequence[Arm] = ()  # what arms begin with
    recipe: str = "shapes"


def steps(count: int) -> tuple[str, str]:
    return f"train.total.steps={count}", f"optim.schedule.warmup.steps={count // 10}"


def images(count: int) -> tuple[str, str]:
    return f"data.train.manifest={DATA}/train-{count}.json", f"data.train.samples={count}"


def resolution(name: str, pretraining: int, finetuning: int, tokens: tuple[int, int] = (16, 36)) -> Proof:
    """Pretrained at 32 px, fine-tuned at 48. From scratch at 48 px there are steps for the same compute."""
    published = f"proof-{name}"
    start = f"init={{from: models:/{published}@seedSEED, head: keep, pos_embed: "
    tuned = ("model.image_size=48", *steps(finetuning), "optim.lr=3e-4")
    scratch = ("model.image_size=48", *steps(finetuning + round(pretraining * tokens[0] / tokens[1])))
    return Proof(
        "fine-tuned at a higher resolution, interpolated positions are ahead of new ones and of training from scratch",
        [
            Arm("equal compute", "interpolated", (*tuned, start + "linear}")),
            Arm("equal compute", "new positions", (*tuned, start + "reinit}")),
            Arm("equal compute", "from scratch", scratch),
        ],
        pretraining=[Arm("pretraining", 32, (*steps(pretraining), f"publish={{name: {published}, alias: seedSEED}}"))],
        recipe=name,
    )


def positions(name: str, count: int) -> Proof:
    kinds = {"none": "none", "1D": "learned1d", "2D": "learned2d", "relative": "relative"}
    return Proof(
        "no position embedding is behind; 1D, 2D and relative ones are alike (Table 8)",
        [Arm("after the same steps", x, (f"model.pos_embed={kind}", *steps(count))) for x, kind in kinds.items()],
        recipe=name,
    )


HYBRID = ("model.stem_blocks=[1]", "model.patch_size=2")
SMALL = ("model.width=32", "model.depth=2", "model.num_heads=2", "model.mlp_dim=128")
LARGE = ("model.width=96", "model.depth=6", "model.num_heads=6", "model.mlp_dim=384")


def compute(count: int, *model: str) -> float:
    """TFLOPs of a run of so many steps."""
    cfg = recipe.load(ROOT / RECIPES / "shapes.yaml", ["name=x", *model])
    return round(count * cfg.train.global_batch * train_flops(cfg.model) / 1e12, 2)


PROOFS = {
    "resolution": resolution("shapes", 1200, 200),
    "resolution_digits": resolution("digits", 300, 50),
    "positions": positions("shapes", 1200),
    "positions_digits": positions("digits", 300),
    "hybrid": Proof(
        "at little compute a hybrid is ahead of the ViT, which catches up with more (Figure 5)",
        [
            *(Arm("ViT", compute(n), steps(n), run=f"ViT {n}") for n in (300, 1000, 3000)),
            *(Arm("hybrid", compute(n, *HYBRID), (*HYBRID, *steps(n)), run=f"hybrid {n}") for n in (100, 330, 1000)),
        ],
        "TFLOPs of training",
    ),
    "scale": Proof(
        "more data help the larger model more; with little it is not ahead (Figure 3)",
        [
            Arm(name, n, (*words, *images(n), *steps(1000)))
            for name, words in (("small", SMALL), ("large", LARGE))
            for n in (1_000, 10_000, 100_000)
        ],
        "training images, for the same steps",
    ),
    "averages": Proof(
        "at a learning rate that stays high, an average of the weights is ahead of the weights",
        [
            Arm("constant rate", x, ("optim.schedule.name=constant", "optim.ema_decay=0.99"), metric, "averages")
            for x, metric in (("weights", "eval/top1"), ("their average", "eval_ema/top1"))
        ],
    ),
    "drop_path": Proof(
        "where images are few, DropPath helps a deep model",
        [
            Arm(f"{count} images", rate, (*LARGE, *images(count), *steps(1000), f"model.drop_path={rate}"))
            for count in (1_000, 10_000)
            for rate in (0.0, 0.1, 0.2)
        ],
        "DropPath, for the same steps",
    ),
}


def cli(*words: str, core: int | None = None) -> None:
    command = [sys.executable, "-m", "vitscale.cli", *words]
    preexec = None if core is None else lambda: os.sched_setaffinity(0, {core})
    subprocess.run(command, check=True, cwd=ROOT, preexec_fn=preexec)


def train(proof: str, arms: Sequence[Arm]) -> dict[str, dict[str, float]]:
    """Runs and their last metrics, by name; what is finished is not done again."""
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in os.sched_getaffinity(0):
        free.put(core)

    def one(name: str, words: Sequence[str]) -> dict[str, float]:
        core = free.get()
        try:
            cli("train", str(RECIPES / f"{PROOFS[proof].recipe}.yaml"), "--procs", "1", f"name={name}", *words, core=core)
        finally:
            free.put(core)
        return json.loads((ROOT / RUNS / name / "status.json").read_text())["metrics"]

    runs = dict(itertools.chain.from_iterable(trainings(proof, arm) for arm in arms))
    with ThreadPoolExecutor(free.qsize()) as pool:
        return dict(zip(runs, pool.map(one, runs, runs.values()), strict=True))


def trainings(proof: str, arm: Arm) -> list[tuple[str, list[str]]]:
    """Name and overrides of an arm's runs, by seed."""
    name = "-".join(["proof", proof, *(arm.run or f"{arm.curve} {arm.x}").split()])
    return [
        (f"{name}-seed{seed}", [f"seed={seed}", *(word.replace("SEED", str(seed)) for word in arm.overrides)]) for seed in SEEDS
    ]


def measure(proof: str) -> list[dict]:
    """One row for each arm: its scores by seed."""
    train(proof, PROOFS[proof].pretraining)
    metrics = train(proof, PROOFS[proof].arms)
    return [
        {
            "curve": arm.curve,
            "x": arm.x,
            "metric": arm.metric,
            "scores": [metrics[run][arm.metric] for run, _ in trainings(proof, arm)],
        }
        for arm in PROOFS[proof].arms
    ]


def build_data() -> None:
    """The pictures, manifests of their first few shards for smaller sets, and the digits."""
    if not (ROOT / DATA / "train.json").exists():
        fraction = VAL_IMAGES / (TRAIN_IMAGES + VAL_IMAGES)
        shards = ("--val-fraction", str(fraction), "--shard-samples", str(SHARD))
        cli("data", "build", f"shapes:{TRAIN_IMAGES + VAL_IMAGES}", "--out", str(DATA), *shards)
    cli("data", "build", "digits", "--out", str(DIGITS), "--shard-samples", "400", "300", "250", "200", "150", "138")
    for count in (1_000, 10_000, 100_000):
        out = DATA / f"train-{count}.json"
        if not (ROOT / out).exists():
            first = [str(DATA / f"train-{number:05d}.tar") for number in range(count // SHARD)]
            cli("data", "index", *first, "--out", str(out), "--classes", str(classes_file()))


def classes_file() -> Path:
    """The names of the classes, as the manifest has them."""
    path = ROOT / DATA / "classes.txt"
    names = json.loads((ROOT / DATA / "train.json").read_text())["classes"]
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def draw(name: str, rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    figure = Figure((5, 3.2), layout="constrained")
    axes = figure.subplots()
    for curve, group in itertools.groupby(rows, lambda row: row["curve"]):
        points = list(group)
        means, spreads = zip(*((fmean(row["scores"]), stdev(row["scores"])) for row in points), strict=True)
        line = "" if isinstance(points[0]["x"], str) else "-"
        axes.errorbar([row["x"] for row in points], means, spreads, marker="o", linestyle=line, capsize=4, label=curve)
    if not isinstance(rows[0]["x"], str):
        axes.set_xscale("log" if rows[0]["x"] else "linear")
        ticks = [row["x"] for row in rows if row["curve"] == rows[0]["curve"]]
        axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
        axes.minorticks_off()
        axes.legend()
    axes.set_ylabel("top-1 on held-out images")
    axes.set_xlabel(PROOFS[name].xlabel)
    figure.savefig(ROOT / "docs" / "figures" / f"proof_{name}.png", dpi=150)


def table(rows: list[dict]) -> str:
    """For docs/proof.md: mean and standard deviation over the seeds."""
    lines = [f"| {row['curve']} | {row['x']} | {fmean(row['scores']):.4f} ± {stdev(row['scores']):.4f} |\n" for row in rows]
    return "| | | top-1 |\n|---|---|---|\n" + "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="+", choices=[*PROOFS, "all"])
    names = parser.parse_args().name
    build_data()
    for name in PROOFS if names == ["all"] else names:
        rows = measure(name)
        (ROOT / "docs" / "proof").mkdir(exist_ok=True)
        (ROOT / "docs" / "proof" / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(name, rows)
        print(f"\n{name}: {PROOFS[name].claim}\n{table(rows)}", flush=True)


if __name__ == "__main__":
    main()
