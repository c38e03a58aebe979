"""What the headers of the recipes say of their cost, and the table in recipes/README.md, worked out by `vitscale plan`.

Run it after a change of recipes or of plan.py: `python tests/recipe_costs.py` writes both.
"""

import re
from pathlib import Path

from launcher import cluster
from launcher.cluster import Cluster
from vitscale import plan, recipe
from vitscale.config import RunConfig

RECIPES = Path(__file__).parents[1] / "recipes"
LEAVES = sorted(path for folder in ("pretrain", "finetune") for path in (RECIPES / folder).glob("*.yaml"))
FIELDS = ("Source", "Run", "Needs", "Deviations", "Expected", "Also", "Cost", "measured")
TABLE_BEGINS, TABLE_ENDS = "<!-- the table: tests/recipe_costs.py -->\n", "<!-- end of the table -->\n"


def h200(nodes: int) -> Cluster:
    return cluster.load("clusters/h200-infiniband.yaml").model_copy(update={"nodes": nodes})


def cost(cfg: RunConfig) -> str:
    """`357 GPU-hours (1.9 days) on 8 H200, 381 (6.0 hours) on 64`"""
    one, eight = (plan.plan(cfg, h200(nodes)) for nodes in (1, 8))
    first, second = (f"{round_off(found['GPU-hours'])}{{}} ({lasts(found['days'])})" for found in (one, eight))
    return f"{first.format(' GPU-hours')} on 8 H200, {second.format('')} on 64"


def lasts(days: float) -> str:
    unit, value = next(
        ((unit, days * n) for unit, n in (("days", 1), ("hours", 24)) if days * n >= 1), ("minutes", days * 1440)
    )
    return f"{round_off(value)} {unit}"


def round_off(value: float) -> str:
    """At most one digit behind the point, at least two digits that count."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def header(path: Path) -> dict[str, str]:
    """The fields of a recipe's first comment; `title` is its first line."""
    lines = path.read_text().splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
    found, label = {"title": comment[0].removeprefix("# ")}, "title"
    for line in comment[1:]:
        if begins := re.match(rf"# ({'|'.join(FIELDS)}): +", line):
            label = begins[1]
            found[label] = line[begins.end() :]
        else:
            found[label] += " " + line.removeprefix("#").strip()
    return found


def row(path: Path) -> str:
    """A line of the table."""
    said = header(path)
    hours, measured = said["Cost"].partition(" GPU-hours")[0], said["measured"]
    name = f"[{path.parent.name}/{path.stem}]({path.relative_to(RECIPES)})"
    also = f" And {said['Also']}" if "Also" in said else ""
    return f"| {name} | {said['title']} {said['Source']} | {said['Expected']}{also} | {hours} | {measured} |\n"


def table() -> str:
    head = "| recipe | what, and whose | expected, by the source | planned GPU-hours on 8 H200 | measured |\n"
    return head + "|---|---|---|---|---|\n" + "".join(map(row, LEAVES))


def main() -> None:
    for path in LEAVES:
        text = path.read_text()
        line = f"# Cost:       {cost(recipe.load(path))}, by `vitscale plan`"
        path.write_text(re.sub(r"^# Cost: .*$", line, text, count=1, flags=re.MULTILINE))
        print(path.stem, line)
    page = RECIPES / "README.md"
    before, _, rest = page.read_text().partition(TABLE_BEGINS)
    page.write_text(before + TABLE_BEGINS + table() + TABLE_ENDS + rest.partition(TABLE_ENDS)[2])


if __name__ == "__main__":
    main()
