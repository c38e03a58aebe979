"""What an evaluation counts of held-out images, exact for any number of ranks, and the files it leaves. K classes."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.loader import Batch
from data_pipeline.peek import Picture, contact_sheet
from data_pipeline.stats import class_name
from data_pipeline.storage import replace
from vitscale.loss import softmax
from vitscale.real import count_real
from vitscale.world import World

MAX_COUNTED, MAX_WRITTEN = 1000, 100  # classes whose confusions are counted; of which all are written
NUM_ERRORS = 100  # where not: the commonest confusions that are
NUM_SHOWN, SHOWN_PIXELS = 16, 128


class Tally:
    """Sums over batches, each slot times its weight, and the first images with what was said of them."""

    def __init__(self, num_classes: int, device: torch.device, real_NR: torch.Tensor | None = None) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)  # see `count`
        columns = num_classes if num_classes <= MAX_COUNTED else 2
        self.guesses_KC = torch.zeros(num_classes, columns, dtype=torch.int64, device=device)
        """images by true class and first guess; of very many classes, by true class and whether the guess was right"""
        self.real = torch.zeros(2, dtype=torch.int64, device=device)  # see `count_real`
        self._real_NR = real_NR
        self._first: tuple[Batch, torch.Tensor] | None = None

    def add(self, batch: Batch, logits_BK: torch.Tensor) -> None:
        self._first = self._first or (next(batch.split(NUM_SHOWN)), logits_BK[:NUM_SHOWN])
        self.sums += count(logits_BK, batch.labels_B, batch.weight_B)
        guess_B = best(logits_BK)[:, 0]
        if self._real_NR is not None:
            labels_BR = self._real_NR[batch.slots.samples].to(guess_B.device)
            self.real += count_real(guess_B[: len(labels_BR)], labels_BR)  # what pads a batch is at its end
        column_B = guess_B if self._is_square else (guess_B == batch.labels_B).long()
        self.guesses_KC.index_put_((batch.labels_B, column_B), batch.weight_B.long(), accumulate=True)

    def sum_over_ranks(self, world: World) -> None:
        """Call on every rank."""
        self.sums, self.guesses_KC, self.real = (world.sum(found) for found in (self.sums, self.guesses_KC, self.real))

    @property
    def metrics(self) -> dict[str, float]:
        """`top1`, `top5`, `loss` (mean cross-entropy) and `images`; with ReaL labels `real`, of the images that have any."""
        right, images = self.real.tolist()
        return summarise(self.sums) | ({"real": right / images} if images else {})

    @property
    def _is_square(self) -> bool:
        return len(self.guesses_KC) <= MAX_COUNTED

    def write(self, folder: Path, classes: Sequence[str]) -> None:
        """`per_class.csv`; `confusion.csv`, or of many classes `confusions.csv`, the commonest; `predictions.png`."""
        guesses_KC = self.guesses_KC.cpu().numpy()
        names = [class_name(number, classes) for number in range(len(guesses_KC))]
        right_K = guesses_KC.diagonal() if self._is_square else guesses_KC[:, 1]
        counts = zip(names, guesses_KC.sum(axis=1).tolist(), right_K.tolist(), strict=True)
        rows = ((name, images, right, right / images if images else "") for name, images, right in counts)
        write_csv(folder / "per_class.csv", ("class", "images", "right", "accuracy"), rows)
        if len(names) <= MAX_WRITTEN:
            table = ((name, *row) for name, row in zip(names, guesses_KC.tolist(), strict=True))
            write_csv(folder / "confusion.csv", ("true \\ predicted", *names), table)
        elif self._is_square:
            wrong_KK = guesses_KC - np.diag(right_K)
            cells = np.argwhere(wrong_KK)[np.argsort(-wrong_KK[wrong_KK > 0], kind="stable")[:NUM_ERRORS]].tolist()
            common = ((names[true], names[guess], wrong_KK[true, guess]) for true, guess in cells)
            write_csv(folder / "confusions.csv", ("true", "predicted", "images"), common)
        replace(folder / "predictions.png", contact_sheet(self._pictures(classes), SHOWN_PIXELS))

    def _pictures(self, classes: Sequence[str]) -> list[Picture]:
        """The first images of the first rank, with the true class, the guess and its probability."""
        assert self._first
        batch, logits_BK = self._first
        chance_B, guess_B = logits_BK.softmax(dim=1).max(dim=1)
        columns = (tensor.cpu().numpy() for tensor in (batch.images_BHWC, batch.labels_B, guess_B, chance_B, batch.weight_B))
        return [
            Picture(pixels_HWC, f"true: {class_name(label, classes)}", f"said: {class_name(guess, classes)} {chance:.2f}")
            for pixels_HWC, label, guess, chance, weight in zip(*columns, strict=True)
            if weight
        ]


def best(logits_BK: torch.Tensor) -> torch.Tensor:
    """The five likeliest classes, likeliest first."""
    return logits_BK.topk(min(5, logits_BK.shape[1])).indices


def count(logits_BK: torch.Tensor, labels_B: torch.Tensor, weight_B: torch.Tensor) -> torch.Tensor:
    """float64 sums over a batch: (first guess right, one of five right, loss, images), each slot times its weight."""
    right_B5 = best(logits_BK) == labels_B[:, None]
    targets_BK = torch.nn.functional.one_hot(labels_B, logits_BK.shape[1]).float()
    first_B, five_B = right_B5[:, 0].float(), right_B5.any(dim=1).float()
    columns = torch.stack([first_B, five_B, softmax(logits_BK, targets_BK), torch.ones_like(weight_B)])
    return (columns * weight_B).double().sum(dim=1)


def summarise(sums: torch.Tensor) -> dict[str, float]:
    top1, top5, loss, images = sums.tolist()
    return {"top1": top1 / images, "top5": top5 / images, "loss": loss / images, "images": images}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    replace(path, text.getvalue().encode())
