"""What is in a data set: counts from its manifest and indexes, sizes and formats from the headers of some of its images."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.decode import kind, size
from data_pipeline.errors import DataError
from data_pipeline.jpeg import has_restarts
from data_pipeline.labels import NO_LABEL
from data_pipeline.manifest import Manifest
from data_pipeline.pool import in_threads
from data_pipeline.stream import Shards


def stats(manifest: Manifest, num_sampled: int, seed: int) -> dict[str, Any]:
    """Everything as JSON has it. Holds 16 bytes per sample."""
    columns = manifest.columns("size", "label")
    return {
        "manifest": manifest.name,
        "images": manifest.num_samples,
        "shards": len(manifest.urls),
        "bytes": int(manifest.bytes.sum()),
        "images_per_shard": spread(manifest.samples),
        "bytes_per_shard": spread(manifest.bytes),
        "bytes_per_image": spread(columns["size"]),
        "without_label": int((columns["label"] == NO_LABEL).sum()),
        **sampled_stats(manifest, num_sampled, seed),
        "histogram": histogram(columns["label"], manifest.classes),
    }


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Least, greatest and what lies between them."""
    quantiles = np.quantile(values, (0, 0.05, 0.5, 0.95, 1)) if len(values) else [0] * 5
    return dict(zip(("min", "p5", "median", "p95", "max"), map(float, quantiles), strict=True))


def histogram(labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Images per class, for every named class and every label that occurs, by number."""
    numbers, counts = np.unique(labels[labels != NO_LABEL], return_counts=True)
    images = dict.fromkeys(range(len(classes)), 0) | dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    return [{"label": label, "class": class_name(label, classes), "images": count} for label, count in images.items()]


def class_name(label: int, classes: Sequence[str]) -> str:
    """What a label means: a class's name, or its number where it has none."""
    if label == NO_LABEL:
        return "no label"
    return classes[label] if 0 <= label < len(classes) else str(label)


def sampled_stats(manifest: Manifest, num_sampled: int, seed: int) -> dict[str, Any]:
    """Sizes and formats of images drawn without repetition."""
    shards = Shards(manifest)

    def look(sample: int) -> tuple[int, int, str, bool] | None:
        block = shards.load([sample])
        try:
            image, _ = block.image(sample)
            return *size(image), kind(image) or "other", has_restarts(image)
        except DataError:
            return None

    samples = np.random.default_rng(seed).choice(len(shards), min(num_sampled, len(shards)), replace=False)
    looks = [found for found in in_threads(look, np.sort(samples).tolist()) if found]
    widths, heights, kinds, restarts = zip(*looks, strict=True) if looks else [()] * 4
    return {
        "sampled": len(samples),
        "damaged": len(samples) - len(looks),
        "width": spread(widths),
        "height": spread(heights),
        "aspect": spread(np.divide(widths, heights)),
        "formats": dict(Counter(kinds).most_common()),
        "restart_markers": sum(restarts) / max(1, len(looks)),
    }
