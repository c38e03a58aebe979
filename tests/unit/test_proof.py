"""The small-scale proofs: what they run can be run, and the page shows what they found."""

import json
import sys
from pathlib import Path

import pytest

from vitscale import recipe

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "tests" / "benchmarks"))
import proof  # noqa: E402

PAGE = ROOT / "docs" / "proof.md"


@pytest.mark.parametrize("name", proof.PROOFS)
def test_every_arm_is_a_recipe(name):
    found = proof.PROOFS[name]
    runs = [run for arm in (*found.pretraining, *found.arms) for run in proof.trainings(name, arm)]
    for run, overrides in runs:
        recipe.load(ROOT / proof.RECIPES / f"{found.recipe}.yaml", [f"name={run}", *overrides])
    assert len({run for run, _ in runs}) == len({tuple(overrides) for _, overrides in runs}) >= len(proof.SEEDS)


@pytest.mark.parametrize("name", proof.PROOFS)
def test_the_page_shows_what_was_found(name):
    rows = json.loads((ROOT / "docs" / "proof" / f"{name}.json").read_text())
    assert [(row["curve"], row["x"]) for row in rows] == [(arm.curve, arm.x) for arm in proof.PROOFS[name].arms]
    assert all(len(row["scores"]) == len(proof.SEEDS) for row in rows)
    page = PAGE.read_text()
    assert proof.table(rows) in page
    assert f"figures/proof_{name}.png" in page and f"proof.py {name}" in page
    assert (ROOT / "docs" / "figures" / f"proof_{name}.png").stat().st_size > 5_000
