"""A published model as MLflow serves it: images in, likeliest classes out. The code is this package's, nothing is pickled."""

import base64
import binascii
import io
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from data_pipeline import storage
from vitscale.errors import ModelError

TOP = 5
MAX_PATH = 4096
EXAMPLE = "input_example.json"


class Classifier:
    """What `mlflow.pyfunc.load_model` wraps."""

    def __init__(self, folder: str) -> None:
        from vitscale.pretrained import load_pretrained

        self._loaded = load_pretrained(folder)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """A pandas frame with `image` (bytes, base64, URL, path) to one with `classes` and `probabilities`, likeliest first."""
        images = [open_image(value) for value in frame["image"].explode()]
        guesses = self._loaded.predict(images, max(1, (params or {}).get("top", TOP))) if images else []
        names = [[guess.name for guess in row] for row in guesses]
        return type(frame)({"classes": names, "probabilities": [[guess.probability for guess in row] for row in guesses]})


_load_pyfunc = Classifier  # MLflow looks for this name


def open_image(value: bytes | str) -> Image.Image:
    """An image from its bytes, their base64 (also as a data: URL), a URL or a path."""
    from vitscale.pretrained import open_image as read

    return read(io.BytesIO(_bytes_of(value)), f"image {value[:60]!r}")


def _bytes_of(value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    if "://" in value[:10] or (len(value) < MAX_PATH and Path(value).is_file()):
        return storage.read_all(value)
    try:
        return base64.b64decode(value.rpartition(",")[2] if value.startswith("data:") else value, validate=True)
    except binascii.Error:
        raise ModelError(f"image {value[:60]!r}: no such file, and not base64; give bytes in base64, a URL or a path") from None


def write_flavour(folder: Path, image_size: int) -> None:
    """Write the files from which MLflow knows how to load and call a model; they are the same each time."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    outputs = Schema([ColSpec(Array(DataType.string), "classes"), ColSpec(Array(DataType.double), "probabilities")])
    top = ParamSchema([ParamSpec("top", DataType.long, TOP)])
    example = {"columns": ["image"], "data": [[_example(image_size)]]}
    loader = {"loader_module": "vitscale.serving", "python_version": platform.python_version()}
    model = {
        "flavors": {"python_function": loader},
        "mlflow_version": version("mlflow"),
        "signature": ModelSignature(Schema([ColSpec(AnyType(), "image")]), outputs, top).to_dict(),
        "saved_input_example_info": {"artifact_path": EXAMPLE, "type": "dataframe", "pandas_orient": "split"},
    }
    (folder / "MLmodel").write_text(json.dumps(model, indent=1) + "\n")  # YAML holds JSON
    (folder / EXAMPLE).write_text(json.dumps(example) + "\n")
    (folder / "requirements.txt").write_text(f"vitscale=={version('vitscale')}\nmlflow=={version('mlflow')}\n")


def _example(image_size: int) -> str:
    """A picture to try it with, in base64."""
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((image_size, image_size)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
