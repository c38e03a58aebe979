"""The command line, as a user meets it: in a process of its own."""

import json
import math
import os
import re
import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image
from safetensors.torch import save_file

from vitscale.model.config import ViTConfig
from vitscale.model.vit import ViT
from vitscale.modelinfo import ModelInfo
from vitscale.sums import write_sums

COMMANDS = [
    *("train", "submit", "sweep", "show", "sync", "demo", "plan", "doctor"),
    *("eval", "fewshot", "predict", "figures", "pull", "publish", "import", "export", "data"),
]
DATA_COMMANDS = ["build", "index", "verify", "peek", "stats", "leaks", "order", "simulate", "bench"]


@pytest.fixture
def vitscale(tmp_path):
    """Run a command in an empty directory."""

    def run(*words, **environ):
        env = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        command = [sys.executable, "-m", "vitscale.cli", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, env=env | environ, capture_output=True, text=True, timeout=60, check=False)

    return run


def assert_one_paragraph(done, *said):
    """Exit status 1, and an error that fits in one paragraph."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in said), done.stderr


def listed(help_text):
    """The commands that a help text lists, with a description each."""
    return re.findall(r"^    (\w+) +\w", help_text, re.MULTILINE)


def test_help_lists_the_commands_that_exist(vitscale):
    assert listed(vitscale("--help").stdout) == COMMANDS
    assert listed(vitscale("data", "--help").stdout) == DATA_COMMANDS


@pytest.mark.parametrize("words", [[name] for name in COMMANDS] + [["data", name] for name in DATA_COMMANDS])
def test_every_command_has_help_with_an_example_of_itself(vitscale, words):
    done = vitscale(*words, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"example: vitscale {' '.join(words)}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["data", "build", "--help"]])
def test_help_is_quick_because_it_imports_nothing_heavy(words):
    code = f"""
import sys
from vitscale import cli
sys.argv[1:] = {words}
try:
    cli.main()
except SystemExit:
    pass
print(*sorted({{"torch", "pydantic", "mlflow", "yaml", "numpy", "deepspeed", "rich"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["data"],
        ["data", "fly"],
        ["show"],
        ["show", "recipes/demo/pretrain.yaml", "--fast"],
        ["show", "recipes/demo/pretrain.yaml", "--procs", "0"],
        ["train", "recipes/demo/pretrain.yaml", "--procs", "two"],
        ["eval", "model", "--data", "x", "--batch", "0"],
        ["data", "build", "digits", "--out", "x", "--shard-samples", "0"],
        ["data", "build", "digits", "--out", "x", "--shard-samples", "1.5"],
        ["data", "build", "digits", "--out", "x", "--shard-bytes", "0"],
        ["data", "build", "digits", "--out", "x", "--shard-bytes", "many"],
        ["data", "build", "digits", "--out", "x", "--seed", "-1"],
        ["data", "stats", "x", "--seed", "-1"],
        ["sync", "here", "there"],
    ],
)
def test_wrong_usage_is_status_2_with_a_hint(vitscale, words):
    done = vitscale(*words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vitscale")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["show", "train"])
def test_a_typo_in_a_recipe(vitscale, write_recipe, command):
    path = write_recipe("name: x\ntrian: {global_batch: 8}\n")
    assert_one_paragraph(vitscale(command, path), f"{path}:2: unknown key trian; did you mean train?")


@pytest.mark.parametrize("command", ["show", "train"])
def test_a_bad_override(vitscale, write_recipe, command):
    done = vitscale(command, write_recipe(), "optim.lr=fast")
    assert_one_paragraph(done, "override optim.lr=fast: optim.lr", "found 'fast'")


def test_a_missing_recipe(vitscale):
    assert_one_paragraph(vitscale("show", "gone.yaml"), "gone.yaml: no such recipe")


def test_a_directory_is_no_recipe(vitscale, tmp_path):
    assert_one_paragraph(vitscale("show", tmp_path), "no such recipe")


def test_missing_data(vitscale, write_recipe):
    assert_one_paragraph(
        vitscale("train", write_recipe()), "nowhere/train.json: no manifest to read", "write it with `vitscale data build`"
    )


def test_processes_that_do_not_fit(vitscale, write_recipe):
    assert_one_paragraph(vitscale("show", write_recipe(), "--procs", "3"), "8 lanes", "cannot feed 3 processes")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sync", "gone"], "gone: not a run directory"),
        (["publish", "gone", "--name", "a", "--alias", "b"], "gone: neither a checkpoint directory nor a file of weights"),
        (["pull", "somewhere"], "pull takes models:/NAME@ALIAS"),
        (["pull", "models:/a@b"], "no MLflow store"),
        (["train", "recipes/demo/pretrain.yaml", "--port", "70000"], "--port 70000"),
    ],
)
def test_what_is_not_there(vitscale, tmp_path, words, said):
    assert_one_paragraph(vitscale(*words), said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["predict", "gone", "image.png"], "gone: neither a checkpoint directory nor a file of weights"),
        (["eval", "gone", "--data", "val.json"], "gone: neither a checkpoint directory nor a file of weights"),
        (["data", "verify", "gone.json"], "gone.json: no manifest to read"),
        (["data", "build", "gone", "--out", "out"], "gone: does not exist; what may be a source stands in"),
        (["data", "index", "gone.tar", "--out", "out.json"], "gone.tar: no such shard"),
        (["data", "index", "gone.tar", "--out", "out.json", "--classes", "gone.txt"], "gone.txt"),
    ],
)
def test_what_is_not_there_of_models_and_data(vitscale_here, tmp_path, words, said):
    assert_one_paragraph(vitscale_here(*words), said)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down(vitscale_here, published_files, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    words = ("publish", published_files, "--name", "a", "--alias", "b", "--tracking-uri", "http://127.0.0.1:9")
    assert_one_paragraph(vitscale_here(*words), "MLflow at http://127.0.0.1:9", "try again")


@pytest.mark.usefixtures("store")
def test_a_model_is_published_and_pulled(vitscale_here, published_files, tmp_path):
    done = vitscale_here("publish", published_files, "--name", "net", "--alias", "best")
    assert (done.returncode, done.stdout) == (0, "models:/net/1 = models:/net@best\n")
    assert vitscale_here("pull", "models:/net@best", "--to", "net").stdout == "net\n"
    assert (tmp_path / "net" / "weights.safetensors").read_bytes() == (published_files / "weights.safetensors").read_bytes()
    assert_one_paragraph(vitscale_here("pull", "models:/net@worst"), "models:/net@worst: not found", "it has net@best")


def test_show_gives_the_resolved_recipe_back_as_one(vitscale, write_recipe, tmp_path):
    shown = vitscale("show", write_recipe(), "optim.lr=0.25", "--procs", "2")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(r"^# micro batch +4$", shown.stdout, re.MULTILINE)
    assert re.search(r"^# steps +unknown until the data exist$", shown.stdout, re.MULTILINE)
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    again = vitscale("show", "shown.yaml", "--procs", "2")
    assert again.stdout == shown.stdout


def test_show_as_json_says_the_same(vitscale_here, write_recipe):
    values = json.loads(vitscale_here("show", write_recipe(), "--json", "--model", "train.total.steps=7").stdout)
    assert values["recipe"]["train"]["total"]["steps"] == 7
    assert values["derived"]["steps"] == 7
    assert {"name": "head", "output": [3], "parameters": {"weight": [3, 8], "bias": [3]}} in values["layers"]
    assert (
        sum(math.prod(shape) for layer in values["layers"] for shape in layer["parameters"].values()) == 1683
    )  # 392 patches, 48 tokens, 600 a block, 16 norm, 27 head


@pytest.mark.parametrize(
    ("model", "row"),
    [
        ("{name: vit-ti16, pool: map, pos_embed: relative}", "relative_keys 196x196x64 table 12x391x64 300,288"),
        ("{name: r-ti16}", "stem.root 64x112x112 weight 64x3x7x7 9,408"),
        ("{name: bit-r50x1, image_size: 32}", "stages.3.0.conv2 512x1x1 weight 512x512x3x3 2,359,296"),
    ],
)
def test_show_lists_the_layers_of_every_kind_of_model(vitscale_here, write_recipe, model, row):
    rest = "{data: {train: {manifest: a.json}}, train: {global_batch: 8, total: {steps: 1}}, optim: {lr: 1}}"
    shown = vitscale_here("show", write_recipe(f"{{name: x, model: {model}, {rest[1:-1]}}}"), "--model")
    assert shown.returncode == 0, shown.stderr
    assert row in [" ".join(line.removeprefix("#").split()) for line in shown.stdout.splitlines()]


def test_overrides_may_stand_before_and_after_options(vitscale, write_recipe):
    words = ("show", write_recipe(), "seed=1", "--json", "optim.lr=0.5", "--procs", "2", "runs=there")
    recipe = json.loads(vitscale(*words).stdout)["recipe"]
    assert (recipe["seed"], recipe["optim"]["lr"], recipe["runs"]) == (1, 0.5, "there")


def test_shipped_recipes_can_be_shown_from_anywhere(vitscale):
    assert vitscale("show", "recipes/pretrain/vit-l16-in21k.yaml").returncode == 0


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_leaves_early_is_no_error(buffered):
    env = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = [sys.executable, "-m", "vitscale.cli", "show", "recipes/pretrain/vit-l16-in21k.yaml"]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    shown.stdout.close()
    assert shown.communicate()[1] == ""
    assert shown.returncode == 1


def test_show_and_head():
    command = f"{sys.executable} -m vitscale.cli show recipes/pretrain/vit-l16-in21k.yaml | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("name: vit-l16-in21k\n", "")


@pytest.fixture
def published_files(tmp_path, config):
    """A directory with a small model, as a checkpoint has it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.json").write_text(ModelInfo.of(config().model, config().data, ["cat", "dog", "owl"]).dump())
    save_file(ViT(config("model.head_bias=1").model).state_dict(), folder / "weights.safetensors")
    write_sums(folder)
    return folder


def test_predict_names_classes_with_probabilities(vitscale_here, published_files, tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "red.png")
    done = vitscale_here("predict", published_files, "red.png", "--json", "--top", "5")
    guesses = json.loads(done.stdout)["top"]
    assert [guess["name"] for guess in guesses] == ["cat", "dog", "owl"]
    assert [guess["probability"] for guess in guesses] == pytest.approx([1 / 3] * 3)  # the head is new
    assert vitscale_here("predict", published_files, "red.png", "--top", "1").stdout == "red.png  cat 0.333\n"


def bomb():
    """A PNG of a few bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind, content=b""):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT") + chunk(b"IEND")


@pytest.mark.parametrize("content", [b"no image", b"", b"\x89PNG\r\n\x1a\n", bomb()], ids=["text", "nothing", "cut", "bomb"])
def test_predict_on_what_is_no_image(vitscale_here, published_files, tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    assert_one_paragraph(vitscale_here("predict", published_files, "notes.txt"), "notes.txt: not a readable image")


def test_eval_counts_every_image_once(vitscale_here, published_files, shards):
    done = vitscale_here("eval", published_files, "--data", shards["train"].location, "--batch", "7")
    metrics = json.loads(done.stdout)
    assert (metrics["images"], metrics["top5"]) == (20, 1.0)
    assert metrics["loss"] == pytest.approx(1.0986123, abs=1e-6)  # log 3: the head is new


def test_eval_says_where_it_cannot_write_before_it_works(vitscale_here, published_files, shards, tmp_path):
    (tmp_path / "file").touch()
    done = vitscale_here("eval", published_files, "--data", shards["train"].location, "--out", "file/x")
    assert_one_paragraph(done, "file/x")
    assert done.stdout == ""


def test_fewshot_says_when_images_are_few(vitscale_here, published_files, shards):
    manifest = shards["train"].location
    done = vitscale_here("fewshot", published_files, "--train", manifest, "--test", manifest, "--max-train", "10")
    assert re.fullmatch(r"warning: 3 classes have fewer than 25 images to learn from, one [123]; all are taken\n", done.stderr)


@pytest.mark.slow
def test_fewshot_does_not_depend_on_the_processes(vitscale, published_files, shards):
    manifest = shards["train"].location
    words = ("fewshot", published_files, "--train", manifest, "--test", manifest, "--batch", "3")
    alone, two = (json.loads(vitscale(*words, *more).stdout) for more in ((), ("--procs", "2")))
    assert alone == two and set(alone) == {"1shot", "5shot", "10shot", "25shot", "knn"}
    assert 0 < alone["25shot"] <= 1


def test_eval_on_data_of_more_classes_than_the_model_has(vitscale_here, published_files, shards):
    manifest = shards["train"].location
    info = json.loads((published_files / "model.json").read_text())
    info["model"]["num_classes"] = 2
    (published_files / "model.json").write_text(json.dumps(info))
    save_file(ViT(ViTConfig(**info["model"])).state_dict(), published_files / "weights.safetensors")
    write_sums(published_files)
    done = vitscale_here("eval", published_files, "--data", manifest)
    assert_one_paragraph(done, f"{manifest}: 3 classes, but model.num_classes is 2")


def test_data_build_index_and_verify(vitscale_here, tmp_path):
    for number in range(6):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(path)
    built = vitscale_here("data", "build", "images", "--out", "out", "--val-fraction", "0.5", "--shard-samples", "2", "1")
    assert f"{tmp_path}/out/train.json: 3 images in 2 shards, 2 classes" in built.stdout
    (tmp_path / "names.txt").write_text("a\nb\n")
    words = ("data", "index", "out/train-00000.tar", "out/train-00001.tar", "--out", "all.json", "--classes", "names.txt")
    assert vitscale_here(*words).stdout == f"{tmp_path}/all.json: 3 images in 2 shards\n"
    assert vitscale_here("data", "verify", "all.json").stdout == f"{tmp_path}/all.json: 3 images in 2 shards, 0 problems\n"
    shard = tmp_path / "out" / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    done = vitscale_here("data", "verify", "all.json")
    assert done.returncode == 1
    assert "sha256" in done.stdout
