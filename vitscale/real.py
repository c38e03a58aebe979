"""ReaL: all labels that people found in ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?")."""

import re
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter, ValidationError

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.stream import Shards, where

KEY = re.compile(r"ILSVRC2012_val_(\d{8})")  # begins the images' names
NONE = -1
Label = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
LISTS = TypeAdapter(Annotated[list[list[Label]], Field(min_length=1)])


def read_real(path: str, shards: Shards, num_classes: int) -> torch.Tensor:
    """labels_NR, int64: of each sample its labels, filled up with NONE, found by the image's number in its key.

    `path` is `real.json` of google-research/reassessed-imagenet: a list of labels for each image, in the order of the names.
    """
    try:
        rows = [torch.tensor(labels, dtype=torch.int64) for labels in LISTS.validate_json(storage.read_all(path))]
    except ValidationError as error:
        wrong = error.errors()[0]
        at = "".join(f"[{part}]" for part in wrong["loc"])
        raise DataError(f"{path}{at}: not a list of labels for each image ({wrong['msg']}); copy real.json anew") from None
    known_NR = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NONE)
    if known_NR.numel() and (highest := int(known_NR.max())) >= num_classes:
        raise DataError(f"{path}: label {highest}, but the model has {num_classes} classes; take one of ImageNet-1k")
    keys = shards.keys(range(len(shards)))
    real_NR = known_NR[[_row(shards, sample, keys[sample], len(rows)) for sample in range(len(shards))]]
    if not (real_NR != NONE).any():
        raise DataError(f"{path}: no labels for any of these {len(shards):,} images; give the real.json of all 50,000")
    return real_NR


def _row(shards: Shards, sample: int, key: str, count: int) -> int:
    found = KEY.search(key)
    if not found or not 1 <= int(found[1]) <= count:
        raise DataError(
            f"{where(shards, sample)}: no key of an image among the {count:,} of --real, ILSVRC2012_val_00000001 and so on; "
            "build the shards from ILSVRC2012_img_val.tar, whose names they keep"
        )
    return int(found[1]) - 1


def count_real(guess_B: torch.Tensor, labels_BR: torch.Tensor) -> torch.Tensor:
    """int64 (images whose guess is one of their labels, images that have any)."""
    right_B = (guess_B[:, None] == labels_BR).any(dim=1)
    return torch.stack([right_B.sum(), (labels_BR != NONE).any(dim=1).sum()])
