"""Sizes by name (ViT paper, Table 1; Ti and S: AugReg, Table 2). Data only: imports no torch."""

SIZES: dict[str, dict[str, int]] = {
    "ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "s": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "b": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "l": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "h": {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
}
PATCH_SIZES = {"ti": (16,), "s": (16, 32), "b": (8, 16, 32), "l": (16, 32), "h": (14,)}

ZOO: dict[str, dict[str, int]] = {
    f"vit-{size}{patch}": {**SIZES[size], "patch_size": patch} for size, patches in PATCH_SIZES.items() for patch in patches
}
