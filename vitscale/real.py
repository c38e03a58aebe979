"""ReaL: all labels that people found in ImageNet's validation images (Beyer et al. 2020, "Are we done with ImageNet?")."""

import json
import re

import torch

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.stream import Shards, where

KEY = re.compile(r"ILSVRC2012_val_(\d{8})")  # begins the images' names
NONE = -1


def read_real(path: str, shards: Shards, num_classes: int) -> torch.Tensor:
    """labels_NR, int64: of each sample its labels, filled up with NONE, found by the image's number in its key.

    `path` is `real.json` of google-research/reassessed-imagenet: a list of labels for each image, in the order of the names.
    """
    try:
        lists = json.loads(storage.read_all(path))
        rows = [torch.tensor(labels, dtype=torch.int64).reshape(-1) for labels in lists]
        known_NR = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=NONE)
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise DataError(f"{path}: not a list of labels for each image ({error}); copy real.json anew") from None
    found = sorted({NONE, *known_NR.unique().tolist()})
    if found[0] < NONE or found[-1] >= num_classes:
        raise DataError(
            f"{path}: labels {found[0]}..{found[-1]}, but the model has {num_classes} classes; take one of ImageNet-1k"
        )
    keys = shards.keys(range(len(shards)))
    return known_NR[[_row(shards, sample, keys[sample], len(rows)) for sample in range(len(shards))]]


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
