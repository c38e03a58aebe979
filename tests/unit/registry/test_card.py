"""What the model card says is what the checkpoint is."""

import json
import re

from vitscale.card import card
from vitscale.sums import write_sums


def row(text, key):
    return next(line for line in text.splitlines() if line.startswith(f"| {key} |"))


def test_it_says_what_data_recipe_accuracy_speed_and_licence(run):
    run = run("publish.licence=CC-BY-4.0", "optim.lr=3e-4")
    checkpoint = run.save(10, eval_top1=0.75, eval_loss=1.25)
    lines = [(5, 100.0), (10, 2000.0), (15, 9.0)]
    entries = [json.dumps({"step": step, "metrics": {"speed/images_per_s": speed}}) for step, speed in lines]
    (run.directory.path / "metrics.jsonl").write_text("\n".join([*entries, '{"step": 20, "metr']))
    text = card(checkpoint, "net", None)
    assert "8 px, 3 outputs" in row(text, "Model") and "cat, dog, owl" in row(text, "Classes")
    assert "bicubic" in row(text, "Preprocessing") and "crop 0.875" in row(text, "Preprocessing")
    assert "train.json" in row(text, "Data") and "val.json" in row(text, "Data") and "d" * 12 in row(text, "Data")
    assert "adamw, peak learning rate 0.0003 (cosine), batch 8, from random weights" in row(text, "Recipe")
    assert "step 10, 80 images seen" in row(text, "Trained")
    assert "eval/top1 0.7500, eval/loss 1.2500" in row(text, "Accuracy")
    assert "2,000 images/s" in row(text, "Speed")  # the last at its own step
    assert "CC-BY-4.0" in row(text, "Licence") and "MIT" in row(card(checkpoint, "net", "MIT"), "Licence")


def test_what_was_not_measured_or_stated_is_not_made_up(checkpoint):
    folder = checkpoint()
    for name in ("recipe.yaml", "state.json"):
        (folder / name).unlink()
    text = card(folder, "net", None)
    assert all("measured: not yet" in row(text, key) for key in ("Accuracy", "Speed"))
    assert "not stated" in row(text, "Licence") and "| Recipe" not in text


def test_a_recipe_of_another_version_is_no_obstacle(checkpoint):
    folder = checkpoint()
    (folder / "recipe.yaml").write_text("name: x\nof_the_future: 1\n")
    write_sums(folder)
    assert "| Recipe" not in card(folder, "net", None)


def test_what_it_says_of_loading_names_the_model(checkpoint):
    text = card(checkpoint(), "net", None)
    commands = re.findall(r"vitscale export (.*?) --format", text)
    assert {*commands, *re.findall(r"load_pretrained\(\"(.*?)\"\)", text)} == {"models:/net/VERSION"}
    assert "timm.create_model(" in text and "transformers.ViTForImageClassification" in text and "mlflow models serve" in text
