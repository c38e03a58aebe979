"""The model on the device against itself in float64 on the CPU, forward and backward; kernels that take its strides."""

import pytest
import torch
from tiny_models import randomised, vit
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitscale.model.layers import LayerNorm

SIZES = {"width": 128, "num_heads": 2, "mlp_dim": 256, "patch_size": 8, "image_size": 32, "depth": 3}
KINDS = [{}, {"pool": "gap", "layer_scale": 0.1}, {"pool": "map", "pos_embed": "relative"}]


def relative_error(found, expected):
    return ((found.double().cpu() - expected).norm() / expected.norm()).item()


def outputs(model, images):
    logits = model(images)
    logits.square().sum().backward()
    return logits.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.bfloat16, 0.05), (torch.float32, 1e-5)], ids=["bf16", "fp32"])
def test_forward_and_backward_are_those_of_float64(device, dtype, allowed, changes):
    cfg = vit(**SIZES, **changes)
    images = torch.randn(4, 3, cfg.image_size, cfg.image_size)
    expected = outputs(randomised(cfg, 0.05).double(), images.double())
    found = outputs(randomised(cfg, 0.05).to(device, dtype), images.to(device, dtype))
    for what, value, truth in zip(("logits", "gradients"), found, expected, strict=True):
        assert relative_error(value, truth) < allowed, what


def test_layer_norm_in_bf16_is_as_exact_as_its_type(device):
    """Input, output and gradients are rounded once each, so the error is that of a rounding: on a CPU that takes a detour."""
    norm, tokens = LayerNorm(256), torch.randn(50_000, 256) * 3 + 1
    upstream = torch.randn(50_000, 256).bfloat16()
    found, expected = [], []
    for results, dtype, place in ((expected, torch.float64, "cpu"), (found, torch.bfloat16, device)):
        norm.to(place, dtype).zero_grad()
        given = tokens.bfloat16().to(place, dtype).requires_grad_()
        given.retain_grad()
        out = norm(given)
        out.backward(upstream.to(place, dtype))
        results += [out.detach(), given.grad, norm.weight.grad, norm.bias.grad]
    for what, value, truth in zip(("output", "input", "weight", "bias"), found, expected, strict=True):
        assert relative_error(value, truth) < 0.004, what


def test_flash_attention_takes_the_strides_of_the_fused_matrix(gpu):
    """Head widths 64 and 80, of L and H: without a copy, and the mixed tokens come out side by side."""
    for width in (64, 80):
        qkv = torch.randn(2, 197, 3 * 16 * width, device=gpu, dtype=torch.bfloat16, requires_grad=True)
        q, k, v = qkv.unflatten(2, (3, 16, -1)).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert mixed.transpose(1, 2).is_contiguous()
