"""Which kernel of torch's attention is the fastest on a device, by a table that was made there (attention.toml)."""

import tomllib
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TABLE = Path(__file__).with_suffix(".toml")


def choose(model: nn.Module, device: torch.device, dtype: torch.dtype, table: Path = TABLE) -> None:
    """Set the kernel of every block of a ViT that will run there. Follows from device, table and torch's deterministic mode."""
    for module in model.modules():
        if hasattr(module, "kernel"):
            head_width = module.qkv.in_features // module.num_heads  # type: ignore[union-attr,operator]
            module.kernel = fastest(device_name(device), dtype, head_width, model.config.num_tokens, table)  # type: ignore


def fastest(device: str, dtype: torch.dtype, head_width: int, tokens: int, table: Path = TABLE) -> SDPBackend | None:
    """By the row for just this; None without one: torch chooses."""
    mode = "deterministic" if torch.are_deterministic_algorithms_enabled() else "any"
    wanted = {"device": device, "dtype": str(dtype).removeprefix("torch."), "head_width": head_width, "tokens": tokens}
    rows = tomllib.loads(table.read_text())["rows"]
    return next((KERNELS[row[mode]] for row in rows if wanted.items() <= row.items()), None)


def device_name(device: torch.device) -> str:
    """As the table names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
