"""Everything that is measured on one GPU, in one call of less than eight minutes: `make bench-gpu`, or
`python tests/benchmarks/gpu.py [--only PART ...] [--tiny] [--write-table] [--out FOLDER]`.

Each part runs in a process of its own, so that its memory, settings and faults are its own, and has so many seconds; what it
does not get to says so. First comes what is right: a wrong result ends the benchmark. `--tiny` runs the same code with
models for a CPU. timm and transformers are measured where they are installed (tests/benchmarks/peers/requirements.txt).
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from gpu_parts import table  # noqa: E402
from gpu_parts.clock import Row, Setting  # noqa: E402

from vitscale.engine import import_deepspeed  # noqa: E402

SECONDS = {"correct": 45, "steps": 200, "zero": 65, "attention": 25, "endtoend": 100, "memory": 40}  # 475 together
MARGIN_S = 5.0  # a part plans to end so long before it would be ended
TINY_SECONDS = 150


def main() -> int:
    args = arguments()
    if args.part:
        run_part(args)
        return 0
    import_deepspeed(args.device)  # says now what would be wrong in minutes
    sections: dict[str, list[Row]] = {}
    for part in args.only or SECONDS:
        sections[part] = measured(part, args)
        print(f"\n### {part}\n{table.markdown(sections[part])}", flush=True)
        if any(row.get("verdict") == "WRONG" for row in sections[part]):
            break
    if aimed := [{"part": part, **row} for part, rows in sections.items() for row in rows if row.get("target")]:
        sections["targets"] = aimed
        print(f"\n### targets\n{table.markdown(aimed)}", flush=True)
    table.write(args.out, about(), sections)
    print(f"\n{args.out / 'gpu.md'} and gpu.json are written")
    return int(any(row.get("verdict") == "WRONG" or "failed" in row for rows in sections.values() for row in rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SECONDS, help="a part; may be given several times")
    parser.add_argument("--tiny", action="store_true", help="small models, on any device")
    parser.add_argument("--write-table", action="store_true", help="put the fastest kernels into vitscale/model/attention.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--seconds", type=float, help="of each part, instead of its own")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device == "cpu" and not args.tiny:
        parser.error("no GPU here: give --tiny to see that everything runs")
    return args


def measured(part: str, args: argparse.Namespace) -> list[Row]:
    """The rows of a part, also of one that broke off or had to be ended."""
    seconds = args.seconds or (TINY_SECONDS if args.tiny else SECONDS[part])
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, str(Path(__file__)), "--part", part, "--rows", str(rows), "--device", args.device]
        command += [
            "--seconds",
            str(seconds),
            *(["--tiny"] if args.tiny else []),
            *(["--write-table"] if args.write_table else []),
        ]
        begin = time.monotonic()
        try:
            code = subprocess.run(command, env=environment(), timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            code = -1
        found = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    if code:
        why = f"ended after {seconds:.0f} s" if code == -1 else f"status {code}, see above"
        found.append({"failed": why})
    print(f"{part}: {time.monotonic() - begin:.0f} s", flush=True)
    return found


def environment() -> dict[str, str]:
    """Deterministic steps are among those measured, so all get the matrix products' workspace that these need."""
    path = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **os.environ, "PYTHONPATH": path, "LOCAL_RANK": "0"}


def run_part(args: argparse.Namespace) -> None:
    """The child: rows go to a file as they come."""
    setting = Setting(torch.device(args.device), args.tiny, args.seconds - MARGIN_S, began=started())
    part = importlib.import_module(f"gpu_parts.{args.part}")
    rows = []
    with args.rows.open("w") as file:
        for row in part.run(setting):
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    if args.part == "attention" and args.write_table:
        part.write_table(rows, setting)
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed keeps threads to the end


def started() -> float:
    """When this process began, by time.monotonic: its imports count."""
    from vitscale.phases import process_age_s

    return time.monotonic() - process_age_s()


def about() -> dict[str, str]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    ask = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    commit = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    return {
        "machine": f"{name}, {len(os.sched_getaffinity(0))} CPU cores",
        "versions": versions,
        "commit": commit or "unknown",
        "command": " ".join([Path(sys.executable).name, *sys.argv]),
    }


if __name__ == "__main__":
    sys.exit(main())
