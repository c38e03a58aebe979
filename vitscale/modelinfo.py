"""`model.json`: what it takes to rebuild and use a model without its recipe. Imports no torch."""

import json
from pathlib import Path

from pydantic import SerializeAsAny, ValidationError

from data_pipeline.config import DataConfig, Preprocessing
from vitscale.errors import ModelError
from vitscale.model.config import ModelConfig

FILE = "model.json"
WEIGHTS = "weights.safetensors"
AVERAGED = "ema.safetensors"


class ModelInfo(Preprocessing):
    """Architecture, preprocessing and class names."""

    model: SerializeAsAny[ModelConfig]
    classes: list[str]

    @classmethod
    def of(cls, model: ModelConfig, data: DataConfig, classes: list[str]) -> "ModelInfo":
        return cls(model=model, classes=classes, **data.model_dump(include=set(Preprocessing.model_fields)))

    def resized(self, image_size: int) -> "ModelInfo":
        """The same model on images of another size; ModelError where its patches do not fit them."""
        try:
            model = ModelConfig.model_validate(self.model.model_dump() | {"image_size": image_size})
        except ValidationError as error:
            raise ModelError(explain(error)) from None
        return self.model_copy(update={"model": model})

    def dump(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def read_model_info(folder: Path) -> ModelInfo:
    """The `model.json` of a checkpoint or published model."""
    path = folder / FILE
    try:
        return ModelInfo.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ModelError(f"{folder}: no {FILE} in it, so it is not a model; give a checkpoint or a models:/ URI") from None
    except ValidationError as error:
        raise ModelError(f"{path}: not readable by this version of vitscale: {explain(error)}") from None


def weight_files(folder: Path, name: str = WEIGHTS) -> list[Path]:
    """The weights of a model directory, or their average: one file, or where they are large several and their index."""
    return sorted(folder.glob(name.replace(".", "*.") + "*"))


def explain(error: ValidationError) -> str:
    """`model.width: Input should be a valid integer; ...`"""
    found = ((".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")) for problem in error.errors())
    return "; ".join(": ".join(filter(None, problem)) for problem in found)
