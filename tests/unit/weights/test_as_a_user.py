"""Weights of others as a user meets them: import, export, predict, eval and fine-tuning from a file."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_models import randomised, vit

from vitscale import load_pretrained
from vitscale.errors import ModelError
from vitscale.model.posembed import resize
from vitscale.modelinfo import ModelInfo, read_model_info
from vitscale.rundir import RunDir
from vitscale.source import fetch_init
from vitscale.sums import verify
from vitscale.train import build_model
from vitscale.weights.beside import timm_files
from vitscale.weights.convert import write_model
from vitscale.world import World

CLASSES = list("abcde")


@pytest.fixture
def red(tmp_path):
    Image.new("RGB", (20, 16), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


def info_of(config, classes=CLASSES):
    return ModelInfo(
        model=config, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), interpolation="bilinear", eval_crop=0.8, classes=classes
    )


def test_import_makes_a_model_directory_and_says_what_it_found(vitscale_here, draw, write, tmp_path):
    write("B.npz", draw("npz", width=192, mlp_dim=768, depth=12, patch_size=16, image_size=32))
    done = vitscale_here("import", "B.npz", "--out", "models/b", "eval_crop=1.0", "classes=[a, b, c, d, e]")
    found, assumed = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert found.startswith("B.npz: npz layout, vit-ti16, 32 pixels, 5 classes, 5,")
    assert found.endswith(" parameters -> models/b")
    assert assumed.startswith("assumed, because the file does not say: mean=(0.5, 0.5, 0.5), std=")
    assert "eval_crop=1" not in assumed
    info = read_model_info(tmp_path / "models" / "b")
    assert (info.model.name, info.eval_crop, info.classes) == ("vit-ti16", 1.0, CLASSES)
    assert verify(tmp_path / "models" / "b") == []


def test_predict_and_load_pretrained_take_a_file_as_it_is(vitscale_here, draw, write, red):
    path = write("B.npz", draw("npz"))
    vitscale_here("import", "B.npz", "--out", "b")
    said = [vitscale_here("predict", model, "red.png", "--json").stdout for model in ("B.npz", "b")]
    assert said[0] == said[1]
    guess = json.loads(said[0])["top"][0]
    loaded = load_pretrained(str(path))
    with Image.open(red) as image:
        (best,) = loaded.predict([image], top=1)[0]
        probabilities = loaded.model(loaded.transform(image)[None]).softmax(dim=1)
    assert (guess["label"], guess["probability"]) == (best.label, best.probability)
    assert best.probability == probabilities.max().item() > 1 / 5
    assert loaded.classes == []


def test_another_image_size(vitscale_here, draw, write, red):
    path = write("B.npz", draw("npz"))
    loaded = load_pretrained(path, image_size=20)
    with Image.open(red) as image:
        assert loaded.transform(image).shape == (3, 20, 20)
        (guess,) = loaded.predict([image], top=1)[0]
    said = json.loads(vitscale_here("predict", "B.npz", "red.png", "--image-size", "20", "--json", "--top", "1").stdout)
    assert said["top"] == [guess._asdict()]
    done = vitscale_here("predict", "B.npz", "red.png", "--image-size", "18")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("error: image_size 18 is not a multiple of patch_size 4; use 16 or 20\n")
    assert "B.npz: assumed, because the file does not say: mean=" in done.stderr


def test_eval_of_a_file_counts_every_image(vitscale_here, draw, write, shards):
    write("B.npz", draw("npz", num_classes=3))
    for words in ((), ("--image-size", "24")):
        done = vitscale_here("eval", "B.npz", "--data", shards["train"].location, *words)
        metrics = json.loads(done.stdout)
        assert metrics["images"] == 20
        assert 0 <= metrics["top1"] <= 1 and metrics["loss"] > 0


@pytest.mark.parametrize(
    "form, out", [("npz", "o.npz"), ("timm", "o"), ("hf", "o"), ("hf", "o.bin"), ("safetensors", "o.safetensors")]
)
def test_export_and_import_bring_the_model_back(vitscale_here, tmp_path, form, out):
    """What the layout does not hold is said again; a folder holds all."""
    config = vit(gelu="tanh", num_classes=5)
    weights = randomised(config).state_dict()
    write_model(tmp_path / "model", info_of(config), weights)
    done = vitscale_here("export", "model", "--format", form, "--out", out)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / line).is_file() for line in done.stdout.splitlines())
    again = [] if out in ("o", "o.safetensors") else ["model.num_heads=3", "model.gelu=tanh", "model.norm_eps=1e-6"]
    assert vitscale_here("import", out, *again, "--out", "back").returncode == 0
    back, info = load_file(tmp_path / "back" / "weights.safetensors"), read_model_info(tmp_path / "back")
    assert back.keys() == weights.keys() and all(torch.equal(back[name], tensor) for name, tensor in weights.items())
    assert info.model == config
    if out == "o.safetensors":
        assert info == info_of(config)
    elif out == "o":
        assert (info.classes, info.mean, info.std, info.interpolation) == (CLASSES, (0.1, 0.2, 0.3), (1, 2, 3), "bilinear")


def test_timm_rounds_to_the_width_that_the_mlp_has():
    """timm's MLP has int(width x ratio) channels (models/vision_transformer.py)."""
    for width, mlp_dim in ((376, 6144), (104, 120), (24, 40), (1408, 6144)):
        arguments = timm_files(info_of(vit(width=width, mlp_dim=mlp_dim, num_heads=1)))["config.json"]["model_args"]
        assert int(arguments["embed_dim"] * json.loads(json.dumps(arguments["mlp_ratio"]))) == mlp_dim


def test_arithmetic_that_a_layout_does_not_tell_is_noted(vitscale_here, tmp_path):
    write_model(tmp_path / "model", info_of(vit(gelu="exact", norm_eps=1e-12)), randomised(vit()).state_dict())
    said = {form: vitscale_here("export", "model", "--format", form, "--out", f"{form}-out").stderr for form in ("timm", "hf")}
    assert said["hf"] == ""
    assert said["timm"].count("note: ") == 1 and "norm_eps is 1e-12; with 1e-06 logits differ a little" in said["timm"]
    said = vitscale_here("export", "model", "--format", "npz", "--out", "o.npz").stderr
    assert said.count("note: ") == 2 and "o.npz does not tell that gelu is exact; with tanh" in said
    assert vitscale_here("export", "model", "--format", "safetensors", "--out", "o.safetensors").stderr == ""


def test_a_safetensors_of_ours_carries_every_option(vitscale_here, tmp_path):
    config = vit(pos_embed="relative", pos_embed_at="shared", layer_scale=0.1, pool="gap", dropout=0.1, image_size=20)
    write_model(tmp_path / "model", info_of(config, []), randomised(config).state_dict())
    vitscale_here("export", "model", "--format", "safetensors", "--out", "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert "vitscale" in file.metadata()
    assert load_pretrained(tmp_path / "o.safetensors").info == info_of(config, [])


def test_what_was_published_is_exported(vitscale_here, tmp_path, store):
    weights = randomised(vit()).state_dict()
    write_model(tmp_path / "model", info_of(vit()), weights)
    assert vitscale_here("publish", "model", "--name", "net", "--alias", "best").returncode == 0
    words = ("export", "models:/net@best", "--format", "npz", "--out", "o.npz", "--tracking-uri", store)
    assert vitscale_here(*words).stdout == "o.npz\n"
    assert np.array_equal(np.load(tmp_path / "o.npz")["cls"], weights["cls_token"])


SPEC = {"patch_size": 4, "width": 8, "depth": 2, "num_heads": 2, "mlp_dim": 16, "image_size": 8, "num_classes": 9}


def test_a_fine_tuning_starts_from_a_file_at_a_higher_resolution(draw, write, config):
    """As a run does it: fetched into its directory as a model, then moved into the recipe's."""
    tensors = draw("npz", **SPEC, representation_size=16)
    source = write("L.npz", tensors)
    cfg = config(f"init.from={source}", "model.image_size=20")
    run = RunDir(cfg)
    origin = fetch_init(cfg.init, cfg.model, run.init, "sqlite:///never-asked.db")
    assert origin == (str(source), str(source), None)
    assert verify(run.init) == []
    source.rename(source.with_name("moved.npz"))
    assert fetch_init(cfg.init, cfg.model, run.init, "sqlite:///never-asked.db") == origin
    model = build_model(cfg, run, World(cfg.hardware, cfg.seed))
    found = {tuple(line.split(maxsplit=2)) for line in run.transfer.read_text().splitlines()}
    assert {("pos_embed.table", "resized", "2x2 -> 5x5"), ("head.weight", "new", "[3, 8]")} < found
    assert {("pre_logits.fc.weight", "dropped", "[16, 8]"), ("cls_token", "kept", "[1, 1, 8]")} < found
    positions = torch.from_numpy(tensors["Transformer/posembed_input/pos_embedding"])
    assert torch.equal(model.pos_embed.table, resize(positions, (2, 2), (5, 5), num_prefix_tokens=1))
    fc1 = tensors["Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel"]
    assert np.array_equal(model.blocks[1].mlp.fc1.weight.detach().T, fc1)
    assert not model.head.weight.any()


@pytest.mark.parametrize(
    "change, said",
    [
        ("model.width=16", r"init\.from: .*L\.npz has another architecture .*width: 8 here, 16 there"),
        ("model.gelu=exact", r"gelu: tanh here, exact there"),
        ("model.pos_embed=sincos2d", r"pos_embed: learned1d here, sincos2d there"),
    ],
)
def test_a_fine_tuning_from_a_file_of_another_model(draw, write, config, tmp_path, change, said):
    cfg = config(f"init.from={write('L.npz', draw('npz', **SPEC))}", change)
    with pytest.raises(ModelError, match=said):
        fetch_init(cfg.init, cfg.model, tmp_path / "init", "sqlite:///never-asked.db")


def test_a_folder_of_transformers_is_a_model_too(vitscale_here, draw, write, red):
    labels = {str(number): name for number, name in enumerate(CLASSES)}
    write("hf/model.safetensors", draw("hf"), {"model_type": "vit", "num_attention_heads": 3, "id2label": labels})
    done = vitscale_here("predict", "hf", red, "--top", "5")
    assert (done.returncode, sorted(done.stdout.split()[1::2])) == (0, CLASSES)
