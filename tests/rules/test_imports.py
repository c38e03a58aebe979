"""Who may import whom. Read from the source, so that an import inside a function counts too."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("vitscale", "data_pipeline", "launcher")
FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]

# The only files that may import these.
DOORS = {
    "deepspeed": {"vitscale/engine.py"},
    "mlflow": {"vitscale/tracking.py", "vitscale/delivery.py", "vitscale/artifacts.py", "vitscale/serving.py"},
    "webdataset": {"data_pipeline/build.py", "data_pipeline/bench.py"},
    "fsspec": {"data_pipeline/remote.py"},
    "yaml": {"vitscale/recipe.py"},
    "matplotlib": {f"vitscale/figures/{name}.py" for name in ("drawing", "model", "runs")},
    "accelerate": {"launcher/launch.py"},
    "launcher": {f"vitscale/{name}.py" for name in ("cli", "cli_models", "demo", "plan", "doctor")},
}
FOR_LAUNCHER = {"launcher", "vitscale", "data_pipeline.config"} | {
    f"vitscale.{name}" for name in ("config", "recipe", "errors", "duration", "orphan", "stopsignal", "failure")
}
WITHOUT_TORCH = [
    "vitscale",
    *(
        f"vitscale.{name}"
        for name in (
            "config",
            "recipe",
            "cli",
            "preflight",
            "show",
            "source",
            "rundir",
            "tracking",
            "delivery",
            "courier",
            "publish",
            "pull",
            "orphan",
            "stopsignal",
            "failure",
            "cadence",
            "devices",
        )
    ),
    *("vitscale.model.config", "vitscale.model.zoo", "vitscale.model.flops"),
    *(
        "launcher",
        "launcher.command",
        "launcher.local",
        "launcher.launch",
        "launcher.cluster",
        "launcher.sbatch",
        "launcher.submit",
        "launcher.node",
    ),
]


def imports(path):
    """Every module that a file imports; `from a import b` gives a.b where that is a module of ours, else a."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                as_path = ROOT / inner.replace(".", "/")
                is_module = as_path.with_suffix(".py").exists() or as_path.is_dir()
                yield inner if node.module.split(".")[0] in OURS and is_module else node.module


def imported_by(path):
    return set(imports(path))


def top(names):
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("library", "doors"), DOORS.items())
def test_each_library_has_one_door(library, doors):
    found = {name for name, path in zip(NAMES, FILES, strict=True) if library in top(imported_by(path))}
    found -= {name for name in NAMES if name.startswith(f"{library}/")}
    assert found <= doors
    assert found, "nothing imports it any more: take it from the list"


@pytest.mark.parametrize("path", (ROOT / "data_pipeline").rglob("*.py"), ids=lambda path: path.name)
def test_the_data_pipeline_imports_nothing_of_ours(path):
    assert not top(imported_by(path)) & {"vitscale", "launcher"}


@pytest.mark.parametrize("path", (ROOT / "launcher").rglob("*.py"), ids=lambda path: path.name)
def test_the_launcher_sees_recipes_only(path):
    of_ours = {name for name in imported_by(path) if name.split(".")[0] in OURS}
    assert {name for name in of_ours if not name.startswith("launcher.")} <= FOR_LAUNCHER
    assert "torch" not in top(imported_by(path))


@pytest.mark.parametrize("path", (ROOT / "vitscale" / "model").rglob("*.py"), ids=lambda path: path.name)
def test_models_know_torch_themselves_and_their_config(path):
    foreign = {name for name in imported_by(path) if not name.startswith(("torch", "vitscale.model"))}
    extra = {"config.py": {"pydantic", "data_pipeline.config"}, "attention.py": {"tomllib", "pathlib"}}
    assert foreign <= {"typing", "itertools", "contextlib"} | extra.get(path.name, set())
    tree = ast.parse(path.read_text())
    taken = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "RunConfig" not in taken


def test_the_reader_of_imports_sees_what_it_should():
    found = imported_by(ROOT / "vitscale" / "cli.py")
    assert {"launcher.local", "vitscale.recipe", "vitscale.preflight", "argparse", "vitscale.cli_data"} <= found
    assert len(FILES) > 40


def loaded_after(module):
    code = f"import sys, {module}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_login_node_needs_no_torch(module):
    loaded = loaded_after(module)
    assert module in loaded
    assert not loaded & {"torch", "deepspeed", "mlflow", "accelerate", "webdataset"}


def test_the_public_door_opens_when_used():
    code = (
        "import sys, vitscale; assert 'torch' not in sys.modules; vitscale.build_model, vitscale.load_pretrained; vitscale.none"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "AttributeError: module 'vitscale' has no attribute 'none'" in done.stderr


HEAVY = {"torch", "deepspeed", "mlflow", "matplotlib", "rich", "asyncio"}


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("show recipes/demo/pretrain.yaml", HEAVY),
        ("show recipes/demo/pretrain.yaml --run-dir", HEAVY | {"numpy"}),
        ("train recipes/demo/pretrain.yaml data.train.manifest=none", HEAVY),
        ("submit recipes/demo/pretrain.yaml --cluster recipes/clusters/cpu.yaml --dry-run", HEAVY),
        ("sync none", HEAVY),
        ("data simulate --samples 1e4 --shards 10 --ranks 2 --global-batch 16", HEAVY),
    ],
)
def test_a_command_imports_what_it_needs(command, unneeded):
    words = [sys.executable, "-X", "importtime", "-m", "vitscale.cli", *command.split()]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    loaded = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "vitscale.arguments" in loaded
    assert not top(loaded) & unneeded
