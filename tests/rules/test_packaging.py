"""The wheel holds our three packages, the recipes and the launcher's settings, and works from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def known_to_git(folder="."):
    """The files that a fresh clone would have, those not yet committed included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as pip builds it from a fresh clone, and unpacked."""
    out, clone = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("clone")
    for name in known_to_git():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, clone / name)
    command = [sys.executable, "-m", "pip", "wheel", str(clone), "--no-deps", "--quiet", "-w", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    zipfile.ZipFile(path).extractall(out / "content")
    return out / "content"


def test_its_top_level_names_are_ours(wheel):
    names = {path.name for path in wheel.iterdir()}
    (info,) = (name for name in names if name.endswith(".dist-info"))
    assert names == {"vitscale", "data_pipeline", "launcher", info}


@pytest.mark.parametrize("folder", ["vitscale", "data_pipeline", "launcher", "recipes"])
def test_every_file_is_inside(wheel, folder):
    place = wheel / ("vitscale/_recipes" if folder == "recipes" else folder)
    for name in known_to_git(folder):
        assert (place / Path(name).relative_to(folder)).is_file()


def test_what_is_no_python_is_inside(wheel):
    assert {path.stem for path in (wheel / "launcher" / "accelerate").glob("*.yaml")} == {
        "base",
        "cpu",
        "gpu1",
        "gpu8",
        "nodes",
    }
    assert (wheel / "vitscale" / "_recipes" / "base.yaml").is_file()


def test_tests_are_not_inside(wheel):
    assert [path for path in wheel.rglob("*") if "test" in path.name] == []


@pytest.mark.parametrize("name", ["recipes/demo/pretrain.yaml", "demo/pretrain.yaml", "recipes/finetune/vit-l16-in1k-384.yaml"])
def test_shipped_recipes_are_found_from_another_directory(wheel, tmp_path, name):
    command = [sys.executable, "-m", "vitscale.cli", "show", name]
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.startswith("name: ")


def test_it_is_the_wheel_that_was_tested(wheel, tmp_path):
    command = [sys.executable, "-c", "import vitscale, launcher; print(vitscale.__file__, launcher.__file__)"]
    env = {**os.environ, "PYTHONPATH": str(wheel)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(wheel / "vitscale" / "__init__.py"), str(wheel / "launcher" / "__init__.py")]
