"""Fresh models: the distributions of the official JAX code, by Kolmogorov and Smirnov's test."""

import math

import pytest
import scipy.stats
import torch

from vitscale.model.config import ViTConfig
from vitscale.model.resnet import STEM_EPS, BiTUnit, StdConv2d, Stem, Unit
from vitscale.model.vit import ViT
from vitscale.model.zoo import SIZES, ZOO


@pytest.fixture(scope="module")
def base():
    """One block of ViT-B/16 with the pretraining head."""
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**ZOO["vit-b16"], "depth": 1}, representation_size=768, num_classes=100, head_bias=-10.0))


@pytest.fixture(scope="module")
def other():
    """One block of width 384 with everything that the first has not."""
    torch.manual_seed(0)
    sizes = {**SIZES["s"], "depth": 1, "patch_size": 2, "image_size": 64}
    return ViT(ViTConfig(**sizes, pool="map", pos_embed="learned2d", layer_scale=1e-4))


def assert_distribution(tensor, distribution):
    """On at most 100,000 values: the statistic's 1e-6 quantile is about 2.7 / sqrt(n)."""
    values = tensor.detach().flatten()[:100_000].numpy()
    assert scipy.stats.kstest(values, distribution.cdf).statistic < 2.7 / math.sqrt(len(values))


def assert_xavier(weight):
    limit = math.sqrt(6 / sum(weight.shape))
    assert_distribution(weight, scipy.stats.uniform(-limit, 2 * limit))
    assert weight.abs().max() <= limit


def assert_lecun_normal(weight):
    std = math.prod(weight.shape[1:]) ** -0.5
    assert_distribution(weight, scipy.stats.truncnorm(-2, 2, scale=std / scipy.stats.truncnorm(-2, 2).std()))
    assert float(weight.detach().double().std()) == pytest.approx(std, rel=0.02)


def test_q_k_v_and_out_are_each_xavier_uniform(base):
    attention = base.blocks[0].attention
    for weight in (*attention.qkv.weight.chunk(3), attention.out.weight):
        assert_distribution(weight, scipy.stats.uniform(-0.0625, 0.125))  # sqrt(6 / (768 + 768))
        assert weight.abs().max() <= 0.0625


def test_the_mlp_is_xavier_uniform_with_tiny_biases(base, other):
    for mlp in (base.blocks[0].mlp, other.blocks[0].mlp, other.attention_pool.mlp):
        for layer in (mlp.fc1, mlp.fc2):
            assert_xavier(layer.weight)
            assert_distribution(layer.bias, scipy.stats.norm(0, 1e-6))


def test_the_attention_pool_is_xavier_uniform_part_by_part(other):
    pool = other.attention_pool
    for weight in (pool.q.weight, *pool.kv.weight.chunk(2), pool.out.weight):
        assert weight.shape == (384, 384)
        assert_xavier(weight)
    limit = math.sqrt(6 / 385)
    assert_distribution(pool.probe, scipy.stats.uniform(-limit, 2 * limit))
    assert not any(layer.bias.any() for layer in (pool.q, pool.kv, pool.out, pool.norm))


def test_patches_and_pre_logits_are_lecun_normal(base):
    for weight in (base.patch_embed.proj.weight, base.pre_logits.fc.weight):
        assert_lecun_normal(weight)


@pytest.mark.parametrize("pos_embed", ["learned1d", "learned2d", "relative"])
def test_learned_positions_are_normal_with_std_002(pos_embed):
    torch.manual_seed(0)
    sizes = {**SIZES["s"], "depth": 2, "patch_size": 4, "image_size": 64}
    model = ViT(ViTConfig(**sizes, pos_embed=pos_embed, pos_embed_at="every"))
    tables = [p for name, p in model.named_parameters() if name.startswith(("pos_embed.", "relative_keys."))]
    assert len(tables) == (2 if pos_embed == "learned2d" else 1)
    for table in tables:
        assert len(table) == 2
        for of_block in table:
            assert_distribution(of_block, scipy.stats.norm(0, 0.02))
        assert not torch.equal(table[0], table[1])


def test_what_starts_at_a_constant(base, other):
    block = base.blocks[0]
    zero = [base.cls_token, base.head.weight, base.patch_embed.proj.bias, base.pre_logits.fc.bias, other.head.bias]
    zero += [block.attention.qkv.bias, block.attention.out.bias, *(norm.bias for norm in (block.norm1, block.norm2, base.norm))]
    assert not any(parameter.any() for parameter in zero)
    norms = (block.norm1, block.norm2, base.norm, other.attention_pool.norm)
    assert all((norm.weight == 1).all() for norm in norms)
    assert (base.head.bias == -10).all()
    assert all((scale.factor == 1e-4).all() for scale in (other.blocks[0].scale1, other.blocks[0].scale2))


def test_the_first_logits_are_the_head_bias(base):
    with torch.no_grad():
        assert (base(torch.randn(1, 3, 224, 224)) == -10).all()


@pytest.mark.parametrize("kind", [Unit, BiTUnit])
def test_a_unit_of_a_resnet(kind):
    torch.manual_seed(0)
    unit = kind(256, 128, 2, STEM_EPS["official"])
    convolutions = [module for module in unit.modules() if isinstance(module, StdConv2d)]
    assert len(convolutions) == 4
    for convolution in convolutions:
        assert_lecun_normal(convolution.weight)
    ones = {"norm1", "norm2", *(["norm3"] if kind is BiTUnit else ["shortcut.1"])}
    for name, module in unit.named_modules():
        if isinstance(module, torch.nn.GroupNorm):
            assert (module.weight == (1 if name in ones else 0)).all(), name
            assert not module.bias.any()


def test_the_stem_of_a_hybrid():
    torch.manual_seed(0)
    stem = Stem((2, 1), STEM_EPS["official"])
    assert_lecun_normal(stem.root.weight)  # fan-in 3 * 7 * 7
    assert (stem.norm.weight == 1).all()
    images = torch.randn(2, 3, 32, 32)
    last = stem.stages[0][1]  # as norm3 begins at 0, a unit without a projection passes its input on
    with torch.no_grad():
        x = torch.relu(torch.randn(2, 256, 8, 8))
        assert torch.equal(last(x), x)
        assert stem(images).shape == (2, 512, 4, 4)
