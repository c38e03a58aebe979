"""FLOPs of a training image, against the numbers that the papers' formula gives."""

import pytest

from vitscale.model.config import ViTConfig
from vitscale.model.flops import forward_macs, train_flops


@pytest.mark.parametrize(
    ("name", "image_size", "gflops"),
    [
        ("vit-b16", 224, 105.2),
        ("vit-b16", 384, 332.2),
        ("vit-l16", 224, 369.0),
        ("vit-l16", 384, 1145.5),
        ("vit-l16", 512, 2170.3),
        ("vit-h14", 224, 1003.4),
        ("vit-h14", 336, 2343.5),
        ("vit-h14", 378, 3019.8),
        ("vit-h14", 518, 6098.2),
    ],
)
def test_training_gflops_per_image(name, image_size, gflops):
    assert round(train_flops(ViTConfig(name=name, image_size=image_size)) / 1e9, 1) == gflops


@pytest.mark.parametrize(("name", "gmacs"), [("vit-b16", 17.6), ("vit-l16", 61.6), ("vit-h14", 167.3)])
def test_forward_gmacs_at_224(name, gmacs):
    assert round(forward_macs(ViTConfig(name=name)) / 1e9, 1) == gmacs


def test_every_matrix_product_is_counted():
    """A model small enough to count by hand: 4 patches and a class token, D = 8, one block, MLP 16, 3 classes."""
    model = ViTConfig(
        patch_size=2, width=8, depth=1, num_heads=2, mlp_dim=16, image_size=4, num_classes=3, representation_size=5
    )
    patches = 4 * 12 * 8
    qkv_and_out = 4 * 5 * 8 * 8
    scores_and_mixing = 2 * 5 * 5 * 8
    mlp = 2 * 5 * 8 * 16
    head = 8 * 5 + 5 * 3
    assert forward_macs(model) == patches + qkv_and_out + scores_and_mixing + mlp + head
    backward_of_patches = patches  # to the weights only; to the pixels there is none
    others = qkv_and_out + scores_and_mixing + mlp + head
    assert train_flops(model) == 2 * (patches + backward_of_patches + 3 * others)
