"""Models by name: the numbers that each name stands for. Data only: imports no torch."""

from itertools import product
from typing import Any

# ViT paper, Table 1; Ti and S: AugReg (arXiv 2106.10270), Table 2; g: Scaling Vision Transformers (arXiv 2106.04560), Table 2.
SIZES: dict[str, dict[str, int]] = {
    "ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "s": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "b": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "l": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "h": {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
    "g": {"width": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
}
PATCH_SIZES = (8, 14, 16, 32)
VIT: dict[str, dict[str, Any]] = {
    f"vit-{size}{patch}": {**numbers, "patch_size": patch} for (size, numbers), patch in product(SIZES.items(), PATCH_SIZES)
}

# Units per stage of the ResNet, and patches on what comes out. For 16 pixels a patch the third stage takes the fourth's units
# (ViT paper, section 4.1). R+Ti/16 has the root alone (official configs/models.py), and patches that are 32 pixels in truth.
HYBRIDS: dict[str, dict[str, Any]] = {
    name: {**SIZES[size], "patch_size": patch, "stem_blocks": blocks}
    for name, size, patch, blocks in (
        ("r-ti16", "ti", 8, ()),
        ("r26-s32", "s", 1, (2, 2, 2, 2)),
        ("r50-b16", "b", 1, (3, 4, 9)),
        ("r50-b32", "b", 1, (3, 4, 6, 3)),
        ("r50-l16", "l", 1, (3, 4, 9)),
        ("r50-l32", "l", 1, (3, 4, 6, 3)),
    )
}

# Of every ResNet here: channels of the root at width factor 1, and how many times its 3 x 3 convolution a unit gives out.
ROOT_WIDTH, EXPANSION = 64, 4

# Kolesnikov et al., "Big Transfer" (ECCV 2020), section 3.1, and the ViT paper, Table 6.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
BIT: dict[str, dict[str, Any]] = {
    f"bit-r{depth}x{factor}": {"blocks": DEPTHS[depth], "width_factor": factor}
    for depth, factor in ((50, 1), (50, 2), (50, 3), (101, 1), (101, 3), (152, 1), (152, 2), (152, 4), (200, 3))
}

ZOO: dict[str, dict[str, Any]] = {**VIT, **HYBRIDS, **BIT}
