"""The config.json that timm and transformers keep beside their weights: what it says of a model, and ours for them."""

import math
from pathlib import Path
from typing import Any

from vitscale.errors import ModelError
from vitscale.model.config import ModelConfig, ViTConfig
from vitscale.model.zoo import SIZES
from vitscale.modelinfo import FILE, ModelInfo
from vitscale.weights.files import parse_json

POOL = {"token": "token", "avg": "gap", "map": "map"}  # in timm
GELU = {"gelu": "exact", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu_tanh": "tanh"}
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
TIMM_SIZES = dict(zip(SIZES, ("tiny", "small", "base", "large", "huge", "giant"), strict=True))
TIMM_NAMES = {f"bit-r{size}": f"resnetv2_{size}_bit" for size in ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")} | {
    "r-ti16": "vit_tiny_r_s16_p8_224",
    "r26-s32": "vit_small_r26_s32_224",
    "r50-b16": "vit_base_r50_s16_224",
    "r50-l32": "vit_large_r50_s32_224",
}


def read_beside(folder: Path) -> dict[str, Any]:
    """Fields of model.json that the folder's model.json or config.json tells; {} without either."""
    if ours := _read_json(folder / FILE):
        return ours
    config, preprocessor = (_read_json(folder / name) for name in ("config.json", "preprocessor_config.json"))
    try:
        if config.get("model_type") == "vit":
            return _from_huggingface(config, preprocessor)
        return _from_timm(config) if "architecture" in config else {}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: {error}") from None


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json(path.read_bytes(), str(path)) if path.is_file() else {}


def _known(table: dict[str, str], name: str, what: str) -> str:
    if name not in table:
        raise ValueError(f"{what} {name!r} is not known here; allowed: {', '.join(table)}")
    return table[name]


def _classes(names: list[str] | dict[str, str]) -> list[str]:
    """In order; [] for the LABEL_7 that transformers makes up."""
    names = [names[number] for number in sorted(names, key=int)] if isinstance(names, dict) else names
    return [] if names == made_up_labels(len(names)) else names


def made_up_labels(count: int) -> list[str]:
    return [f"LABEL_{number}" for number in range(count)]


def _from_huggingface(config: dict[str, Any], preprocessor: dict[str, Any]) -> dict[str, Any]:
    model = {
        "num_heads": config.get("num_attention_heads", 12),  # the defaults of ViTConfig, which it does not write
        "gelu": _known(GELU, config.get("hidden_act", "gelu"), "hidden_act"),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }
    known = {"classes": _classes(config.get("id2label", {})), "eval_crop": 1.0}
    known |= {"interpolation": RESAMPLE.get(preprocessor.get("resample", 2))}
    known |= {"mean": preprocessor.get("image_mean"), "std": preprocessor.get("image_std")}
    return {"model": model, **{key: value for key, value in known.items() if value is not None}}


def _from_timm(config: dict[str, Any]) -> dict[str, Any]:
    said = {**config, **config.get("pretrained_cfg", {}), **config.get("model_args", {})}
    model = {"num_heads": said["num_heads"]} if "num_heads" in said else {}
    if "act_layer" in said:
        model["gelu"] = _known(GELU, said["act_layer"], "act_layer")
    if "global_pool" in said and not config["architecture"].startswith("resnet"):
        model["pool"] = _known(POOL, said["global_pool"], "global_pool")
    keys = {"mean": "mean", "std": "std", "interpolation": "interpolation", "crop_pct": "eval_crop"}
    known = {ours: said[theirs] for theirs, ours in keys.items() if theirs in said}
    return {"model": model, "classes": _classes(said.get("label_names", [])), **known}


def huggingface_files(info: ModelInfo) -> dict[str, dict[str, Any]]:
    """config.json and preprocessor_config.json for `ViTForImageClassification.from_pretrained`, where its defaults differ."""
    model = info.model
    assert isinstance(model, ViTConfig)
    labels = info.classes or made_up_labels(model.num_classes)
    config = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.num_heads,
        "intermediate_size": model.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if model.gelu == "tanh" else "gelu",
        "layer_norm_eps": model.norm_eps,
        "hidden_dropout_prob": model.dropout,
        "image_size": model.image_size,
        "patch_size": model.patch_size,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    size = {"height": model.image_size, "width": model.image_size}
    resample = {name: number for number, name in RESAMPLE.items()}[info.interpolation]
    preprocessor = {"image_processor_type": "ViTImageProcessor", "size": size, "resample": resample}
    preprocessor |= {"image_mean": info.mean, "image_std": info.std}
    return {"config.json": config, "preprocessor_config.json": preprocessor}


def timm_files(info: ModelInfo) -> dict[str, dict[str, Any]]:
    """config.json for `timm.create_model("local-dir:FOLDER")`."""
    model, cfg = info.model, info.model_dump(mode="json", include={"mean", "std", "interpolation"})
    size = {"input_size": (3, model.image_size, model.image_size), "num_classes": model.num_classes}
    cfg |= size | {"crop_pct": info.eval_crop} | ({"label_names": info.classes} if info.classes else {})
    config = {"architecture": timm_name(model), "num_classes": model.num_classes, "pretrained_cfg": cfg}
    return {"config.json": config | ({"model_args": timm_arguments(model)} if isinstance(model, ViTConfig) else {})}


def timm_arguments(model: ViTConfig) -> dict[str, Any]:
    if model.representation_size:
        raise ModelError("timm has no pre-logits; export to a .pth file for programs that have them, or fine-tune first")
    arguments: dict[str, Any] = {"img_size": model.image_size, "act_layer": "gelu_tanh" if model.gelu == "tanh" else "gelu"}
    arguments |= {"class_token": model.pool == "token", "global_pool": "avg" if model.pool == "gap" else model.pool}
    arguments |= {"fc_norm": False, "init_values": model.layer_scale}
    if model.stem_blocks is not None:
        return arguments
    ratio = math.nextafter(model.mlp_dim / model.width, math.inf)  # timm rounds ratio x width down
    sizes = {"patch_size": model.patch_size, "embed_dim": model.width, "depth": model.depth, "num_heads": model.num_heads}
    return arguments | sizes | {"mlp_ratio": ratio}


def timm_name(model: ModelConfig) -> str:
    """timm's name of the architecture; of a plain ViT the arguments overrule its sizes."""
    if isinstance(model, ViTConfig) and model.stem_blocks is None:
        size = next((name for name, numbers in SIZES.items() if numbers["width"] == model.width), "b")
        return f"vit_{TIMM_SIZES[size]}_patch{14 if size in 'hg' else 16}_224"
    if model.name not in TIMM_NAMES:
        raise ModelError(f"{model.name}: timm has no such model; export its weights alone, to a .safetensors file")
    return TIMM_NAMES[model.name]
