"""What every command takes to start: `python tests/benchmarks/bench_startup.py [ROUNDS]` (5 of about 20 s each).

Each import, each command's --help and a real call of each command that can end at once, in turn; wall and CPU seconds are
medians. One more run of each under `-X importtime` says what was imported, and which packages took most.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import NamedTuple

from vitscale.cli import build_parser

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "deepspeed", "mlflow", "matplotlib")
NAMES = {
    "RECIPE": "recipes/demo/pretrain.yaml",
    "LARGE": "recipes/pretrain/vit-l16-in21k.yaml",
    "CPU": "recipes/clusters/cpu.yaml",
    "GPU": "recipes/clusters/h200-infiniband.yaml",
    "DATA": "data.train.manifest={0}/train.json data.train.samples=null",
}
# Words of `vitscale`, {0} is a folder with `train.json` and `val.json`; each ends at once, some of them with an error.
CALLS = """
show RECIPE
show RECIPE --json
show RECIPE --run-dir
show RECIPE DATA
train RECIPE data.train.manifest={0}/none.json
submit RECIPE --cluster CPU --dry-run
sync {0}
sweep RECIPE optim.lr=[1,2] runs={0} --show
fewshot {0}/none --train {0}/train.json --test {0}/val.json --procs 1
pull {0}/none
pull models:/none@none --tracking-uri sqlite:///{0}/none.db
publish {0}/none --name none --alias none
import {0}/none.npz --out {0}/imported
data build shapes:16 --out {0}/built --shard-samples 16
data index {0}/train-000000.tar --out {0}/indexed.json
data verify {0}/val.json
data peek {0}/val.json --out {0}/peek.png
data peek {0}/val.json --augment RECIPE --out {0}/peek.png
data stats {0}/train.json
data leaks {0}/val.json {0}/train.json
data order {0}/train.json --global-batch 16 --steps 3
data simulate --samples 4e6 --shards 400 --ranks 64 --global-batch 1024
show RECIPE --model
plan LARGE --cluster GPU
submit LARGE --cluster GPU --dry-run
predict {0}/none {0}/none.png
doctor
"""


class Run(NamedTuple):
    """One run of a program."""

    wall_s: float
    cpu_s: float  # with its children
    errors: str


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        make_shards(folder)
        programs = dict(every_program(folder))
        imported = {name: importtime(words) for name, words in programs.items()}  # also the first: it writes the bytecode
        runs: dict[str, list[Run]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, words in programs.items():
                runs[name].append(run(words))
    print(f"{'':<76}{'wall s':>8}{'CPU s':>8}  {'heavy':<24}packages that took most, ms")
    for name, found in runs.items():
        wall, cpu = (statistics.median(values) for values in ([r.wall_s for r in found], [r.cpu_s for r in found]))
        heavy = " ".join(package for package in HEAVY if package in imported[name])
        most = ", ".join(f"{package} {us / 1e3:.0f}" for package, us in imported[name].most_common(4))
        print(f"{name[:75]:<76}{wall:>8.3f}{cpu:>8.3f}  {heavy:<24}{most}")


def make_shards(folder: str) -> None:
    """Some pictures to look into."""
    words = ["data", "build", "shapes:128", "--out", folder, "--val-fraction", "0.25", "--shard-samples", "48"]
    subprocess.run([sys.executable, "-m", "vitscale.cli", *words], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def every_program(folder: str) -> Iterator[tuple[str, list[str]]]:
    """Name -> words for Python."""
    for package in ("sys", "vitscale", "data_pipeline", "launcher"):
        yield f"import {package}", ["-c", f"import {package}"]
    for names in commands(build_parser()):
        yield " ".join(("vitscale", *names, "--help")), ["-m", "vitscale.cli", *names, "--help"]
    for line in CALLS.strip().splitlines():
        text = reduce(lambda found, name: found.replace(name, NAMES[name]), NAMES, line)
        yield f"vitscale {line.replace('{0}/', '').replace('{0}', '.')}", ["-m", "vitscale.cli", *text.format(folder).split()]


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """The words of this command and of those below it."""
    yield ()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from ((name, *below) for name, inner in action.choices.items() for below in commands(inner))


def importtime(words: list[str]) -> Counter[str]:
    """Microseconds that importing took, by top-level package."""
    found: Counter[str] = Counter()
    run(words)
    for us, name in re.findall(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", run(["-X", "importtime", *words]).errors, re.M):
        package = name.partition(".")[0]
        found["stdlib" if package in sys.stdlib_module_names else package] += int(us)
    return found


def run(words: list[str]) -> Run:
    """Run Python with these words; with its bytecode kept, as an installed package has it."""
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=errors, cwd=ROOT, env=environ)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        errors.seek(0)
        return Run(wall_s, usage.ru_utime + usage.ru_stime, errors.read())


if __name__ == "__main__":
    main()
