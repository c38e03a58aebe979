"""The same weights in timm, transformers and here: the largest difference of logits, in fp32, for every family and direction.

`make parity`. In: the peer makes random weights and saves them in its own way, `vitscale import` reads them. Out: ours makes
them, `vitscale export` writes them, the peer loads them in its own way (timm's own reader of .npz included).
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

try:
    import torchvision  # noqa: F401
except (OSError, RuntimeError):  # built for CUDA, it does not load beside a torch without; timm wants its Python alone
    OPERATORS = torch.library.Library("torchvision", "DEF")
    POOLS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
    for operator in ("nms", "qnms", *POOLS, *(f"_{pool}_backward" for pool in POOLS)):
        OPERATORS.define(f"{operator}(Tensor never_called) -> Tensor")

import timm
import transformers
from timm.models import save_for_hf
from torch import nn

from vitscale.model.build import build
from vitscale.model.config import ModelConfig
from vitscale.modelinfo import ModelInfo
from vitscale.weights.convert import export, read_model
from vitscale.weights.transfer import fill

NUM_CLASSES = 10
TIMM = {"gelu": "exact", "resnet_eps": "timm"}  # the arithmetic that timm's models have


class Row(NamedTuple):
    family: str
    direction: str
    difference: float
    std: float


@torch.no_grad()
def randomise(model: nn.Module) -> nn.Module:
    """Every parameter random, logits of order 1."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def compare(family: str, direction: str, ours: nn.Module, peer: nn.Module, size: int) -> Row:
    expected, found = peer(images(size)), ours(images(size))
    expected = getattr(expected, "logits", expected)  # transformers wraps them
    return Row(family, direction, (found - expected).abs().max().item(), expected.std().item())


def imported(path: Path, **known: Any) -> nn.Module:
    """The model that `vitscale import` makes of a file or folder."""
    found = read_model(path, {"model": known})
    model = build(found.info.model).eval()
    fill(model, found.weights, found.info.model, path)
    return model


def exported(form: str, out: Path, **config: Any) -> nn.Module:
    """A model of ours that `vitscale export` has written to `out`."""
    model = randomise(build(ModelConfig.model_validate({"num_classes": NUM_CLASSES, **config})))
    half = (0.5, 0.5, 0.5)
    info = ModelInfo(model=model.config, mean=half, std=half, interpolation="bicubic", eval_crop=0.9, classes=[])
    export(info, model.state_dict(), form, out)
    return model


def timm_in(folder: Path, name: str, size: int = 224, **known: Any) -> list[Row]:
    peer = randomise(timm.create_model(name, num_classes=NUM_CLASSES))
    save_for_hf(peer, folder / "hub")
    torch.save(peer.state_dict(), folder / "weights.pth")
    return [
        compare(name, "timm folder -> import", imported(folder / "hub", **known), peer, size),
        compare(name, "timm state_dict() -> import", imported(folder / "weights.pth", **known), peer, size),
    ]


def timm_out(folder: Path, name: str, size: int = 224, **changes: Any) -> list[Row]:
    config = {"name": name, "image_size": size, **TIMM, **changes}
    if name.startswith("bit"):
        del config["gelu"]
    family = " ".join([name, *([f"{size} px"] if size != 224 else []), *(f"{key}={value}" for key, value in changes.items())])
    ours = exported("timm", folder / "timm", **config)
    peer = timm.create_model(f"local-dir:{folder / 'timm'}", pretrained=True).eval()
    rows = [compare(family, "export timm -> create_model", ours, peer, size)]
    if "layer_scale" not in changes:
        ours = exported("npz", folder / "file.npz", **config)
        randomise(peer).load_pretrained(str(folder / "file.npz"))
        rows.append(compare(family, "export npz -> timm load_pretrained", ours, peer, size))
    return rows


def huggingface(folder: Path, act: str, eps: float) -> list[Row]:
    family = f"ViTForImageClassification {act} {eps:g}"
    sizes = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768}
    config = transformers.ViTConfig(**sizes, num_labels=NUM_CLASSES, hidden_act=act, layer_norm_eps=eps)
    peer = randomise(transformers.ViTForImageClassification(config))
    peer.save_pretrained(folder / "saved")
    torch.save(peer.state_dict(), folder / "weights.pth")
    gelu = "exact" if act == "gelu" else "tanh"
    rows = [
        compare(family, "save_pretrained -> import", imported(folder / "saved"), peer, 224),
        compare(family, "state_dict() -> import", imported(folder / "weights.pth", gelu=gelu, norm_eps=eps), peer, 224),
    ]
    ours = exported("hf", folder / "ours", name="vit-ti16", gelu=gelu, norm_eps=eps)
    peer, report = transformers.ViTForImageClassification.from_pretrained(folder / "ours", output_loading_info=True)
    assert not any(report.values()), report
    return [*rows, compare(family, "export hf -> from_pretrained", ours, peer.eval(), 224)]


CASES: list[Callable[[Path], list[Row]]] = [
    lambda folder: timm_in(folder, "vit_tiny_patch16_224"),
    lambda folder: timm_in(folder, "deit3_small_patch16_224"),
    lambda folder: timm_in(folder, "vit_base_patch16_siglip_224"),
    lambda folder: timm_in(folder, "vit_base_patch16_siglip_gap_224"),
    lambda folder: timm_in(folder, "vit_base_patch32_siglip_256", 256, gelu="tanh"),
    lambda folder: timm_in(folder, "vit_tiny_r_s16_p8_224"),
    lambda folder: timm_in(folder, "vit_small_r26_s32_224"),
    lambda folder: timm_in(folder, "vit_base_r50_s16_224"),
    lambda folder: timm_in(folder, "resnetv2_50x1_bit"),
    lambda folder: timm_out(folder, "vit-ti16"),
    lambda folder: timm_out(folder, "vit-ti16", 384),
    lambda folder: timm_out(folder, "vit-ti16", gelu="tanh"),
    lambda folder: timm_out(folder, "vit-s16", layer_scale=1e-4),
    lambda folder: timm_out(folder, "vit-s32", pool="gap"),
    lambda folder: timm_out(folder, "vit-s32", pool="map", gelu="tanh"),
    lambda folder: timm_out(folder, "vit-ti16", pos_embed="sincos2d"),
    lambda folder: timm_out(folder, "r-ti16"),
    lambda folder: timm_out(folder, "r26-s32"),
    lambda folder: timm_out(folder, "r26-s32", pool="gap", layer_scale=1e-4),
    lambda folder: timm_out(folder, "r50-b16"),
    lambda folder: timm_out(folder, "bit-r50x1"),
    lambda folder: huggingface(folder, "gelu", 1e-12),
    lambda folder: huggingface(folder, "gelu_pytorch_tanh", 1e-6),
]


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    print(f"torch {torch.__version__}, timm {timm.__version__}, transformers {transformers.__version__}\n")
    print("| model | way | largest difference | std of the logits |\n|---|---|---|---|")
    for case in CASES:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            for row in case(Path(folder)):
                print(f"| {row.family} | {row.direction} | {row.difference:.1e} | {row.std:.2f} |", flush=True)


if __name__ == "__main__":
    main()
