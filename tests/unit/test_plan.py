"""`vitscale plan`: activations against a closed form, cost against arithmetic by hand, and what it refuses."""

import json
import math

import pytest

from launcher.cluster import Cluster, load
from vitscale import plan, recipe
from vitscale.errors import RecipeError
from vitscale.memory import Activations, activations, memory, num_parameters, trace

IN21K = "recipes/pretrain/vit-l16-in21k.yaml"
H200 = "recipes/clusters/h200-infiniband.yaml"
ROOMY = Activations(0.0, 235e6)  # of ViT-L/16 with dropout, so that tests need not trace it
VIT = ["model={name: custom, patch_size: 8, width: 96, depth: 4, num_heads: 3, mlp_dim: 384, image_size: 64, num_classes: 3}"]


@pytest.mark.parametrize(("precision", "by_width", "by_mlp"), [("bf16", 16, 4), ("fp32", 32, 8)])
def test_a_block_keeps_what_the_closed_form_says(config, precision, by_width, by_mlp):
    """Bytes per token. bf16: both LayerNorms' input and output (8 D), q, k, v and the mixed values (8 D), the MLP
    before and after GELU (4 M). fp32: the norms' inputs and outputs (16 D), 16 D, 8 M. Statistics come on top."""
    shallow, deep = (activations(config(*VIT, f"model.depth={depth}", f"hardware.precision={precision}")) for depth in (2, 6))
    assert (deep.per_image - shallow.per_image) / 4 == pytest.approx(65 * (by_width * 96 + by_mlp * 384), rel=0.02)


def test_dropout_keeps_a_byte_per_element_as_on_gpus(config):
    """On a CPU it would be two, in bf16. After the embedding, and three times per block: output, MLP's hidden layer and end;
    where dropout's output is not what was kept already, that is kept too."""
    without, withit = (activations(config(*VIT, f"model.dropout={rate}")).per_image for rate in (0.0, 0.1))
    masks = 65 * (96 + 4 * (96 + 384 + 96))
    assert masks < withit - without < 65 * (3 * 96 + 4 * (96 + 3 * 384 + 96)) * 1.1


def test_activations_grow_by_the_image(config):
    cfg = config(*VIT, "model.dropout=0.1", "model.drop_path=0.1")
    assert activations(cfg).of(24) == pytest.approx(trace(cfg.model, cfg.hardware, cfg.train.loss, 24), rel=0.02)


def test_checkpointing_keeps_the_blocks_inputs_and_one_block(config):
    plain, checkpointed = (
        activations(config(*VIT, f"hardware.activation_checkpointing={every}")).per_image for every in (0, 1)
    )
    tokens, width = 65, 96
    inputs, block = 4 * tokens * width * 2, plain / 4
    assert inputs + block < checkpointed < inputs + 2.5 * block


def test_states_of_adamw():
    """Rajbhandari et al. 2020, section 3.1: 2 bytes of weights and 12 of fp32 weights and moments; stage 1 shards the 12."""
    cfg = recipe.load(IN21K)
    count = 326_740_307
    for stage, by_hand in enumerate([14, 2 + 12 / 64, 2 + 12 / 64, (2 + 12 + 2) / 64]):
        assert memory(cfg, stage, 64, 8, 1, ROOMY).states == math.ceil(by_hand * count)


def test_a_step_of_vit_l16_on_64_h200():
    """369.2 GFLOPs an image at 38 % of 989 TFLOP/s; bf16 sums over a ring of 64 at 80 % of 400 GB/s."""
    cfg, cluster = recipe.load(IN21K), load(H200)
    plain, sharded, _, gathered = (plan.best_layout(cfg, cluster, stage, ROOMY) for stage in range(4))
    assert plain.compute_s == pytest.approx(64 * 369.2e9 / (989e12 * 0.38), rel=1e-3)
    assert plain.network_s == pytest.approx(2 * 63 / 64 * 4 * 326_740_307 / 320e9)
    assert sharded.network_s == pytest.approx(3 * 63 / 64 * 2 * 326_740_307 / 320e9)
    assert plain.update_s == pytest.approx(2 * 12 * 326_740_307 / 4.8e12)
    assert plan.recommend([plain, sharded, gathered]).zero_stage in (0, 1)
    assert gathered.step_s > 2 * plain.step_s


def test_accumulation_and_recomputation_cost_what_they_do():
    """Stage 2 sums in every micro-step, stage 1 once; the host works per micro-step; checkpointed blocks go forward twice."""
    accumulated = recipe.load(IN21K, ["train.global_batch=16_384", "hardware.micro_batch=64", "data.train.samples=14197122"])
    again = recipe.load(IN21K, ["hardware.activation_checkpointing=1"])
    cluster, bf16 = load(H200), 2 * 326_740_307 * 63 / 64
    once, each = (plan.best_layout(accumulated, cluster, stage, ROOMY) for stage in (1, 2))
    assert (once.grad_accum, each.grad_accum) == (4, 4)
    assert once.sent_bytes == pytest.approx((2 + 1) * bf16) and each.sent_bytes == pytest.approx((4 * 2 + 1) * bf16)
    plain = plan.best_layout(recipe.load(IN21K), cluster, 1, ROOMY)
    assert once.host_s == pytest.approx(4 * plain.host_s)
    longer = plan.best_layout(again, cluster, 1, ROOMY).compute_s / plain.compute_s
    assert longer == pytest.approx(1 + 2 * 61.3 / 369.2, rel=0.01)  # 61.3 GMACs forward in the blocks of L/16


def test_what_a_run_takes(config):
    cfg = config(*VIT, "train.global_batch=64", "data.train.samples=6400")
    found = plan.plan(cfg, Cluster(nodes=2, gpu="h100"))
    assert found["checkpoint bytes"] == 16 * num_parameters(cfg.model)  # fp32 weights twice, and two moments
    assert found["loader cores per node"] == pytest.approx(found["images per second"] / 2 / plan.IMAGES_PER_CORE_S)
    assert found["days"] == pytest.approx(found["steps"] * 64 / found["images per second"] / 86_400)


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    cfg = recipe.load(IN21K, ["train.global_batch=65_536"])
    cluster = Cluster(gpu="a100-40g")
    found = plan.best_layout(cfg, cluster, 1, ROOMY)
    assert (found.micro_batch, found.grad_accum, found.fits) == (128, 64, True)
    assert not plan.layout(cfg, cluster, 1, 256, ROOMY).fits


def test_a_recipe_that_cannot_fit_is_refused(config):
    wide, one = [*VIT, "train.global_batch=131_072"], Cluster(gpus_per_node=1, gpu="a100-40g")
    with pytest.raises(
        RecipeError, match=r"hardware.micro_batch: 131072 images at a time need .* use hardware.micro_batch="
    ) as raised:
        plan.check_memory(config(*wide), one)
    fitting = str(raised.value).partition("use ")[2].partition(",")[0]
    plan.check_memory(config(*wide, fitting), one)
    plan.check_memory(config(*wide), Cluster(gpus_per_node=1))  # of an unknown size


def test_lanes_that_cannot_feed_the_processes_are_refused(config):
    with pytest.raises(RecipeError, match=r"1 nodes x 3 processes: data.lanes: 8 lanes"):
        plan.check_memory(config(), Cluster(gpus_per_node=3, gpu="h100"))


def test_the_command_prints_and_tells_as_json(vitscale_here, write_recipe):
    write_recipe()
    words = (
        "plan",
        "recipe.yaml",
        "--cluster",
        "recipes/clusters/h100-ethernet.yaml",
        "train.global_batch=64",
        "data.train.samples=640",
    )
    done = vitscale_here(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 nodes x 8 h100: 1,683 parameters")
    assert "20 steps of 64 images" in done.stdout and "recommended: use hardware.zero_stage=" in done.stdout
    found = json.loads(vitscale_here(*words, "--json").stdout)
    assert [layout["zero_stage"] for layout in found["layouts"]] == [0, 1, 2, 3]
    assert found["GPU-hours"] == pytest.approx(found["days"] * 24 * 16)


def test_a_cluster_of_unknown_gpus_is_refused(vitscale_here, write_recipe):
    write_recipe()
    done = vitscale_here("plan", "recipe.yaml", "--cluster", "clusters/cpu.yaml")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the cluster file names no gpu; add `gpu: h200`" in done.stderr


def test_without_the_data_the_steps_are_unknown(vitscale_here, write_recipe):
    write_recipe()
    done = vitscale_here("plan", "recipe.yaml", "--cluster", "clusters/h100-ethernet.yaml", "train.global_batch=64")
    assert "unknown steps (state data.train.samples)" in done.stdout and "GPU-hours" not in done.stdout


def test_a_recipe_that_cannot_fit_is_an_error_below_its_table(vitscale_here, write_recipe):
    write_recipe()
    settings = (*VIT, "train.global_batch=4_194_304", "data.train.samples=4_194_304")
    done = vitscale_here("plan", "recipe.yaml", "--cluster", "clusters/h100-ethernet.yaml", *settings)
    assert done.returncode == 1
    assert "recommended: use " in done.stdout
    assert done.stderr.startswith("error: hardware.micro_batch: 262144 images at a time need ")
