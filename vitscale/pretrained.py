"""A trained model, ready to use: `load_pretrained(uri_or_dir)` has `.model`, `.transform` and `.classes`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError

from data_pipeline.decode import to_rgb
from data_pipeline.mixing import normalise
from data_pipeline.views import eval_view
from vitscale.errors import ModelError
from vitscale.model.build import Model, build
from vitscale.model.config import ModelConfig
from vitscale.modelinfo import ModelInfo, explain, read_model_info
from vitscale.source import is_foreign, locate
from vitscale.tracking import tracking_uri
from vitscale.weights import sharded
from vitscale.weights.convert import read_model
from vitscale.weights.transfer import fill


class Guess(NamedTuple):
    """A class and its probability."""

    label: int
    name: str
    probability: float

    def __str__(self) -> str:
        return f"{self.name} {self.probability:.3f}"


@dataclass(frozen=True)
class Pretrained:
    """A model in evaluation mode with what belongs to it."""

    model: Model
    transform: Callable[[Image.Image], torch.Tensor]  # PIL image -> CHW float32
    classes: list[str]
    info: ModelInfo

    @torch.no_grad()
    def predict(self, images: list[Image.Image], top: int = 5) -> list[list[Guess]]:
        """The likeliest classes of each image, likeliest first."""
        probabilities = self.model(torch.stack([self.transform(image) for image in images])).softmax(dim=-1)
        best = probabilities.topk(min(top, probabilities.shape[1]))
        return [
            [Guess(label, self.classes[label] if self.classes else str(label), p) for p, label in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def build_model(config: ModelConfig | str, **changes: int | float | str | None) -> Model:
    """A freshly initialised model: `build_model("vit-b16", image_size=384, num_classes=10)`."""
    if isinstance(config, str):
        try:
            config = ModelConfig.model_validate({"name": config, **changes})
        except ValidationError as error:
            raise ModelError(explain(error)) from None
    return build(config)


def load_pretrained(source: str | Path, tracking: str | None = None, image_size: int | None = None) -> Pretrained:
    """The model in a checkpoint directory, a file of weights, or at `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/ID`.

    `tracking` is the MLflow server or database of a URI; default MLFLOW_TRACKING_URI, else `runs/mlflow.db` here. `image_size`
    makes `.transform` give images of another size, for which the model interpolates its position embedding.
    """
    info, weights = open_model(locate(str(source), tracking or tracking_uri(None, "runs")))
    model = build(info.model).eval()
    fill(model, weights, info.model, Path(source))
    if image_size:
        info = info.resized(image_size)
    return Pretrained(model, eval_transform(info), list(info.classes), info)


def open_model(path: Path) -> tuple[ModelInfo, dict[str, torch.Tensor]]:
    """What a model directory, or a file of weights of any layout, holds."""
    if is_foreign(path):
        imported = read_model(path)
        if imported.note:
            print(f"{path}: {imported.note}", file=sys.stderr)
        return imported.info, imported.weights
    return read_model_info(path), sharded.read(path)


def open_image(file: Path | BinaryIO, name: str = "") -> Image.Image:
    """An image file, read whole."""
    try:
        with Image.open(file) as image:
            image.load()
            return image
    except Exception as error:  # for broken bytes Pillow also raises SyntaxError, DecompressionBombError, ...
        raise ModelError(f"{name or file}: not a readable image ({error})") from None


def eval_transform(info: ModelInfo) -> Callable[[Image.Image], torch.Tensor]:
    """What evaluation does to an image: resize, centre crop, normalise."""

    def transform(image: Image.Image) -> torch.Tensor:  # -> CHW
        pixels = np.array(to_rgb(image))  # a copy: torch warns of read-only memory
        view = eval_view(pixels, info.model.image_size, info)
        return normalise(torch.from_numpy(np.ascontiguousarray(view))[None], info.mean, info.std)[0]

    return transform
