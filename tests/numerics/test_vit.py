"""The Vision Transformer against the paper's equations, written once more in float64 numpy."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from vitscale.model.config import ViTConfig
from vitscale.model.vit import PatchEmbed, ViT
from vitscale.model.zoo import ZOO

SIZES = {"patch_size": 4, "width": 24, "depth": 3, "num_heads": 3, "mlp_dim": 40, "image_size": 12, "num_classes": 5}


def randomised(config):
    """A model in which every parameter is random, so that none can be left out unnoticed."""
    torch.manual_seed(0)
    model = ViT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def layer_norm(x, weight, bias):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * weight + bias


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(x, w, prefix, num_heads):
    """Appendix A, head by head, of one image: x is (N, D)."""
    width = x.shape[1]
    q, k, v = np.split(x @ w[f"{prefix}.qkv.weight"].T + w[f"{prefix}.qkv.bias"], 3, axis=1)
    size, heads = width // num_heads, []
    for head in range(num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = np.exp(q[:, part] @ k[:, part].T / math.sqrt(size))
        heads.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, part])
    return np.concatenate(heads, axis=1) @ w[f"{prefix}.out.weight"].T + w[f"{prefix}.out.bias"]


def mlp(x, w, prefix):
    return (
        gelu(x @ w[f"{prefix}.fc1.weight"].T + w[f"{prefix}.fc1.bias"]) @ w[f"{prefix}.fc2.weight"].T + w[f"{prefix}.fc2.bias"]
    )


def logits(image, w, cfg):
    """Equations 1 to 4 for one image (C, H, W)."""
    p, grid = cfg.patch_size, cfg.image_size // cfg.patch_size
    cut = [image[:, y * p : y * p + p, x * p : x * p + p] for y in range(grid) for x in range(grid)]
    patches = np.stack([patch.transpose(1, 2, 0).reshape(-1) for patch in cut])  # row, column, channel
    z = patches @ w["patch_embed.proj.weight"].T + w["patch_embed.proj.bias"]
    if cfg.pool == "token":
        z = np.concatenate([w["cls_token"][0], z])
    if cfg.pos_embed == "learned1d":
        z = z + w["pos_embed"][0]
    for block in range(cfg.depth):
        name = f"blocks.{block}"
        normed = layer_norm(z, w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
        z = z + attention(normed, w, f"{name}.attention", cfg.num_heads)
        z = z + mlp(layer_norm(z, w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"]), w, f"{name}.mlp")
    z = layer_norm(z, w["norm.weight"], w["norm.bias"])
    y = z[0] if cfg.pool == "token" else z.mean(axis=0)
    if cfg.representation_size:
        y = np.tanh(y @ w["pre_logits.fc.weight"].T + w["pre_logits.fc.bias"])
    return y @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize("pool", ["token", "gap"])
@pytest.mark.parametrize("representation_size", [None, 16])
@pytest.mark.parametrize("pos_embed", ["learned1d", "none"])
def test_forward_is_the_papers(pool, representation_size, pos_embed):
    cfg = ViTConfig(**SIZES, pool=pool, representation_size=representation_size, pos_embed=pos_embed)
    model = randomised(cfg)
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    images = torch.randn(4, 3, 12, 12)
    with torch.no_grad():
        found = model(images).numpy()
    expected = np.stack([logits(image, weights, cfg) for image in images.double().numpy()])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5 * np.abs(expected).max())
    assert expected.std(axis=0).min() > 0.05  # the images differ in every logit


@pytest.mark.parametrize("patch_size", [4, 7])
def test_patch_embedding_is_a_convolution_of_stride_p(patch_size):
    torch.manual_seed(0)
    embed = PatchEmbed(patch_size, width=10)
    torch.nn.init.normal_(embed.proj.bias)
    images = torch.randn(2, 3, patch_size * 3, patch_size * 5)
    kernel = embed.proj.weight.view(10, patch_size, patch_size, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(images, kernel, embed.proj.bias, stride=patch_size).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("vit-ti16", 5_717_416),
        ("vit-s16", 22_050_664),
        ("vit-s32", 22_878_952),  # timm's vit_small_patch32_224
        ("vit-b8", 86_567_656 + (784 - 196) * 768 - (256 - 64) * 3 * 768),  # B/16 with more positions and smaller patches
        ("vit-b16", 86_567_656),
        ("vit-b32", 88_224_232),
        ("vit-l16", 304_326_632),
        ("vit-l32", 306_535_400),
        ("vit-h14", 632_045_800),
    ],
)
def test_parameters_of_the_papers_models(name, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in ViT(ViTConfig(name=name)).parameters()) == parameters


@pytest.mark.parametrize("change", [{"image_size": 24}, {"num_classes": 9}, {"representation_size": 8}, {"dropout": 0.5}])
def test_equal_architectures_have_equal_tensors_but_for_head_and_positions(change):
    def shapes(**changes):
        with torch.device("meta"):
            parameters = ViT(ViTConfig(**{**SIZES, **changes})).named_parameters()
        return {name: p.shape for name, p in parameters if not name.startswith(("head", "pre_logits", "pos_embed"))}

    assert ViTConfig(**SIZES).architecture_differences(ViTConfig(**{**SIZES, **change})) == []
    assert shapes() == shapes(**change)


@pytest.fixture(scope="module")
def base():
    """As initialised: one block of ViT-B/16 with the pretraining head."""
    torch.manual_seed(0)
    return ViT(ViTConfig(**{**ZOO["vit-b16"], "depth": 1}, representation_size=768, num_classes=100, head_bias=-10.0))


def assert_distribution(tensor, distribution):
    """Kolmogorov-Smirnov, on at most 100,000 values: the statistic's 1e-6 quantile is about 2.7 / sqrt(n)."""
    values = tensor.detach().flatten()[:100_000].numpy()
    assert scipy.stats.kstest(values, distribution.cdf).statistic < 2.7 / math.sqrt(len(values))


def uniform(limit):
    return scipy.stats.uniform(-limit, 2 * limit)


def test_q_k_v_and_out_are_each_xavier_uniform(base):
    attention = base.blocks[0].attention
    for weight in (*attention.qkv.weight.chunk(3), attention.out.weight):
        assert_distribution(weight, uniform(0.0625))  # sqrt(6 / (768 + 768))
        assert weight.abs().max() <= 0.0625


def test_the_mlp_is_xavier_uniform_with_tiny_biases(base):
    mlp = base.blocks[0].mlp
    for layer in (mlp.fc1, mlp.fc2):
        assert_distribution(layer.weight, uniform(math.sqrt(6 / (768 + 3072))))
        assert_distribution(layer.bias, scipy.stats.norm(0, 1e-6))


def test_patches_and_pre_logits_are_lecun_normal(base):
    for weight in (base.patch_embed.proj.weight, base.pre_logits.fc.weight):
        std = weight.shape[1] ** -0.5
        truncated = scipy.stats.truncnorm(-2, 2)
        assert_distribution(weight, scipy.stats.truncnorm(-2, 2, scale=std / truncated.std()))
        assert float(weight.detach().double().std()) == pytest.approx(std, rel=0.01)


def test_positions_are_normal_with_std_002(base):
    assert_distribution(base.pos_embed, scipy.stats.norm(0, 0.02))


def test_what_starts_at_a_constant(base):
    block = base.blocks[0]
    zero = [base.cls_token, base.head.weight, base.patch_embed.proj.bias, base.pre_logits.fc.bias]
    zero += [block.attention.qkv.bias, block.attention.out.bias, *(norm.bias for norm in (block.norm1, block.norm2, base.norm))]
    assert not any(parameter.any() for parameter in zero)
    assert all((norm.weight == 1).all() for norm in (block.norm1, block.norm2, base.norm))
    assert (base.head.bias == -10).all()


def test_the_first_logits_are_the_head_bias(base):
    with torch.no_grad():
        assert (base(torch.randn(1, 3, 224, 224)) == -10).all()


def test_dropout_is_off_in_evaluation_and_on_in_training():
    model = randomised(ViTConfig(**SIZES, dropout=0.5))
    plain = randomised(ViTConfig(**SIZES))
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model(images), plain(images))
    model.train()
    assert not torch.equal(model(images), model(images))
    assert torch.equal(plain.train()(images), plain.eval()(images))


def test_dropout_stands_where_the_official_code_has_it():
    """After the position embedding, attention's output, GELU and the MLP's output; never after qkv."""
    model = ViT(ViTConfig(**SIZES, dropout=0.25))
    shapes = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.25
            module.register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape[1:]))
    model(torch.randn(1, 3, 12, 12))
    tokens, hidden = (10, 24), (10, 40)
    assert [tuple(shape) for shape in shapes] == [tokens, *[tokens, hidden, tokens] * 3]


def test_layer_norms_are_computed_in_fp32():
    model = randomised(ViTConfig(**SIZES))
    tokens = torch.randn(2, 10, 24) * 50 + 300  # a mean that bf16 arithmetic would not survive
    half = tokens.bfloat16()
    expected = F.layer_norm(half.double(), (24,), model.norm.weight.double(), model.norm.bias.double(), 1e-6)
    found = model.norm(half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-3)
