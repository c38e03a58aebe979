"""What the ViT paper shows at scale, tried at a scale that two CPU cores allow: `python tests/benchmarks/proof.py NAME`.

Each proof is runs of recipes/proof/base.yaml with three seeds, all in the MLflow experiment `proof`; it goes on where it was
stopped, and ends with a table, docs/proof/NAME.json and docs/figures/proof_NAME.png. `all` makes them all, in about two hours.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
RECIPE, DATA, RUNS = "recipes/proof/base.yaml", Path("runs/data/shapes"), Path("runs")
SEEDS = (0, 1, 2)
IMAGES = 22_000


class Arm(NamedTuple):
    """A point of a plot: which curve it is on, where, and what is run for it."""

    curve: str
    x: float | str
    overrides: Sequence[str]


def cli(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "vitscale.cli", *words], check=True, cwd=ROOT)


def train(name: str, *overrides: str) -> dict[str, float]:
    """Run it, unless it is finished; its last metrics."""
    cli("train", RECIPE, "--procs", "2", f"name=proof-{name}", *overrides)
    return json.loads((ROOT / RUNS / f"proof-{name}" / "status.json").read_text())["metrics"]


def steps(count: int) -> tuple[str, str]:
    return f"train.total.steps={count}", f"optim.schedule.warmup.steps={count // 10}"


def measure(proof: str, arms: Sequence[Arm], metric: str = "eval/top1") -> list[dict]:
    """One row for each arm: its scores by seed."""
    rows = []
    for arm in arms:
        name = f"{proof}-{arm.curve}-{arm.x}".replace(" ", "-").replace(",", "")
        scores = [train(f"{name}-seed{seed}", f"seed={seed}", *arm.overrides)[metric] for seed in SEEDS]
        rows.append({"curve": arm.curve, "x": arm.x, "metric": metric, "scores": scores})
    return rows


def resolution() -> list[dict]:
    """Pretrained at 32 px, fine-tuned at 48: interpolated position embedding, a new one, and all compute at 48 from scratch."""
    pretraining, finetuning = 600, 150  # steps; of 16 and of 36 patches
    scratch = finetuning + round(pretraining * 16 / 36)
    rows: dict[str, list[float]] = {"interpolated": [], "new position embedding": [], "from scratch": []}
    for seed in SEEDS:
        alias = f"publish={{name: proof-resolution, alias: seed{seed}}}"
        train(f"resolution-pretrain-seed{seed}", f"seed={seed}", *steps(pretraining), alias)
        larger = (f"seed={seed}", "model.image_size=48")
        tuned = (*larger, *steps(finetuning), "optim.lr=5e-4")
        for curve, pos_embed in (("interpolated", "interpolate"), ("new position embedding", "reinit")):
            start = f"init={{from: models:/proof-resolution@seed{seed}, pos_embed: {pos_embed}, head: keep}}"
            rows[curve].append(train(f"resolution-{pos_embed}-seed{seed}", *tuned, start)["eval/top1"])
        rows["from scratch"].append(train(f"resolution-scratch-seed{seed}", *larger, *steps(scratch))["eval/top1"])
    return [{"curve": "at equal compute", "x": x, "metric": "eval/top1", "scores": scores} for x, scores in rows.items()]


def positions() -> list[dict]:
    """Table 8: none is worse than 1D, 1D and 2D are alike."""
    kinds = {"none": "none", "1D": "learned1d", "2D": "learned2d"}
    return measure("positions", [Arm("position embedding", x, (f"model.pos_embed={kind}",)) for x, kind in kinds.items()])


def hybrid() -> list[dict]:
    """Figure 5: a hybrid is ahead at little compute, and the ViT catches up."""
    models = {"ViT": (), "hybrid": ("model.stem_blocks=[1]", "model.patch_size=2")}
    return measure("hybrid", [Arm(name, n, (*words, *steps(n))) for name, words in models.items() for n in (100, 300, 900)])


def scale() -> list[dict]:
    """Figure 3: more data helps the larger model more. The same steps on more or fewer images."""
    small = ("model.width=32", "model.depth=2", "model.num_heads=2", "model.mlp_dim=128")
    large = ("model.width=96", "model.depth=6", "model.num_heads=6", "model.mlp_dim=384")
    both, counts = (("small", small), ("large", large)), (500, 2_500, 20_000)
    return measure("scale", [Arm(name, n, (*words, *images(n))) for name, words in both for n in counts])


def images(count: int) -> tuple[str, str]:
    return f"data.train.manifest={DATA}/train-{count}.json", f"data.train.samples={count}"


def averages() -> list[dict]:
    """At a rate that stays high, an average of the weights is better than the weights."""
    arm = Arm("constant rate", "", ("optim.schedule.name=constant", "optim.ema_decay=0.99"))
    metrics = {"weights": "eval/top1", "their average": "eval_ema/top1"}
    return [{**row, "x": x} for x, metric in metrics.items() for row in measure("averages", [arm], metric)]


def drop_path() -> list[dict]:
    """Where images are few, DropPath helps a deeper model."""
    few = (*images(2_500), "model.depth=6", *steps(1_200))
    return measure("drop-path", [Arm("2,500 images", str(rate), (*few, f"model.drop_path={rate}")) for rate in (0.0, 0.1, 0.2)])


FUNCTIONS = (resolution, positions, hybrid, scale, averages, drop_path)
PROOFS: dict[str, Callable[[], list[dict]]] = {proof.__name__: proof for proof in FUNCTIONS}


def build_data() -> None:
    """The pictures, and manifests of their first few shards for smaller sets."""
    fraction = 2_000 / IMAGES
    cli("data", "build", f"shapes:{IMAGES}", "--out", str(DATA), "--val-fraction", str(fraction), "--shard-samples", "500")
    for count in (500, 2_500, 20_000):
        out = ROOT / DATA / f"train-{count}.json"
        if not out.exists():
            shards = [str(DATA / f"train-{number:05d}.tar") for number in range(count // 500)]
            cli("data", "index", *shards, "--out", str(out), "--classes", str(classes_file()))


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
    for curve, points in itertools.groupby(rows, lambda row: row["curve"]):
        points = list(points)
        means = [fmean(row["scores"]) for row in points]
        spreads = [stdev(row["scores"]) for row in points]
        axes.errorbar([row["x"] for row in points], means, spreads, marker="o", capsize=4, label=curve)
    if not isinstance(rows[0]["x"], str):
        ticks = sorted({row["x"] for row in rows})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{x:,}" for x in ticks])
        axes.minorticks_off()
    axes.set_ylabel("top-1 on 2,000 held-out images")
    axes.set_xlabel({"hybrid": "steps", "scale": "training images", "drop_path": "drop path"}.get(name, ""))
    axes.legend()
    figure.savefig(ROOT / "docs" / "figures" / f"proof_{name}.png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=[*PROOFS, "all"])
    name = parser.parse_args().name
    build_data()
    for proof in PROOFS if name == "all" else [name]:
        rows = PROOFS[proof]()
        (ROOT / "docs" / "proof").mkdir(exist_ok=True)
        (ROOT / "docs" / "proof" / f"{proof}.json").write_text(json.dumps(rows, indent=1) + "\n")
        draw(proof, rows)
        print(f"\n{proof}: {PROOFS[proof].__doc__}")
        for row in rows:
            print(f"  {row['curve']:24}{row['x']!s:>24}  {fmean(row['scores']):.4f} +- {stdev(row['scores']):.4f}")


if __name__ == "__main__":
    main()
