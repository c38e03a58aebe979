"""Keys and augmented bytes of every global step depend on no layout: not on ranks, threads, micro-batches or accumulation."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import http_server
from sharding import write_shards

from data_pipeline.config import AugmentConfig, DataConfig
from data_pipeline.loader import Layout, train_loader
from data_pipeline.manifest import Manifest, read_manifest
from data_pipeline.mixing import prepare
from data_pipeline.order import Order
from data_pipeline.stream import Shards

SIZE, NUM_CLASSES, SEED, STEPS = 16, 3, 5, range(6)
EVERYTHING = AugmentConfig(three_augment=True, color_jitter=0.3, randaugment_layers=2, erase=0.5, mixup=0.2, cutmix=1.0)
SHARDS = {
    "uneven": [1, 30, 2, 9, 1, 1, 6],
    "one": [17],
    "fewer samples than lanes": [3, 2],
    "prime": [7, 7, 7, 2],
}
GLOBAL_BATCH = 24
Hashes = list[tuple[str, str]]  # key of the sample, and hash of its pixels, for every slot


@pytest.fixture(scope="module")
def manifests(tmp_path_factory) -> dict[str, list[Manifest]]:
    made = {name: [write_shards(tmp_path_factory.mktemp("shards"), sizes)] for name, sizes in SHARDS.items()}
    other = write_shards(tmp_path_factory.mktemp("shards"), [5, 1, 8], prefix="other", restarts=1)
    return {**made, "two sources": [made["uneven"][0], other]}


def config(manifests: list[Manifest], weights: list[float] | None, **values) -> DataConfig:
    sources = [{"manifest": manifest.location} for manifest in manifests]
    for source, weight in zip(sources, weights or [], strict=False):
        source["weight"] = weight
    return DataConfig.model_validate({"train": sources, "mix_group": 2, "shuffle_block": 4, "augment": EVERYTHING, **values})


def run(
    manifests: list[Manifest], lanes: int, ranks: int, threads: int, micro: int, steps: range = STEPS, **values
) -> list[Hashes]:
    """What the ranks make of each step, in slot order."""
    cfg = config(manifests, [3.0, 1.0] if len(manifests) == 2 else None, **values)
    shards = Shards(manifests)
    parts = [rank_steps(shards, cfg, lanes, Layout(rank, ranks, threads), micro, steps) for rank in range(ranks)]
    return [list(itertools.chain(*step)) for step in zip(*parts, strict=True)]


def rank_steps(shards: Shards, cfg: DataConfig, lanes: int, layout: Layout, micro: int, steps: range) -> list[Hashes]:
    sizes = [manifest.samples for manifest in shards.manifests]
    order = Order(sizes, GLOBAL_BATCH, lanes, cfg.shuffle_block, SEED, cfg.source_weights, cfg.repeated)
    found = []
    for batch in train_loader(shards, order, cfg, SIZE, NUM_CLASSES, SEED, steps, layout):
        prepared = [prepare(part, cfg, NUM_CLASSES, torch.float32) for part in batch.split(micro)]
        images, targets = (torch.cat(parts).numpy() for parts in zip(*prepared, strict=True))
        keys = [shards.key(sample) for sample in batch.slots.samples.tolist()]
        slots = zip(batch.images_BHWC.numpy(), images, targets, strict=True)
        found.append(list(zip(keys, [digest(*slot) for slot in slots], strict=True)))
    return found


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


LANES = {24: (1, 2, 4), 12: (3,), 6: (6,)}
LAYOUTS = [
    (name, lanes, ranks, threads, micro)
    for name in [*SHARDS, "two sources"]
    for lanes, rank_counts in LANES.items()
    for ranks in rank_counts
    for threads, micro in [(1, 2), (3, GLOBAL_BATCH // ranks)]
]


@pytest.fixture(scope="module")
def references(manifests) -> dict[tuple[str, int], list[Hashes]]:
    """One rank, one thread, one micro-batch."""
    return {
        (name, lanes): run(manifests[name], lanes, 1, 1, GLOBAL_BATCH) for name, lanes in itertools.product(manifests, LANES)
    }


@pytest.mark.parametrize(("name", "lanes", "ranks", "threads", "micro"), LAYOUTS)
def test_no_layout_changes_a_step(manifests, references, name, lanes, ranks, threads, micro):
    assert run(manifests[name], lanes, ranks, threads, micro) == references[name, lanes]


@pytest.mark.parametrize("start", STEPS[1:])
def test_any_step_can_be_the_first_after_a_restart_on_another_layout(manifests, references, start):
    steps = range(start, STEPS.stop)
    assert run(manifests["two sources"], 12, 3, 2, 4, steps) == references["two sources", 12][start:]


COLOURS = EVERYTHING.model_copy(update={"randaugment_layers": 0})  # which moves pictures so small out of sight: all are grey
REPEATED = {"repeated": 3, "mix_group": 6, "augment": COLOURS}


@pytest.fixture(scope="module")
def repeated(manifests) -> list[Hashes]:
    """Every image three times, by one rank."""
    return run(manifests["two sources"], 12, 1, 1, GLOBAL_BATCH, **REPEATED)


@pytest.mark.parametrize(("ranks", "threads", "micro", "start"), [(1, 3, 6, 0), (2, 2, 12, 0), (4, 1, 6, 0), (2, 1, 6, 2)])
def test_neither_layout_nor_restart_changes_steps_of_repeated_images(manifests, repeated, ranks, threads, micro, start):
    steps = range(start, STEPS.stop)
    assert run(manifests["two sources"], 12, ranks, threads, micro, steps, **REPEATED) == repeated[start:]


def test_views_of_an_image_are_in_one_batch_and_differ(repeated):
    for step in repeated:
        keys = [key for key, _ in step]
        assert all(keys[slot] == keys[slot + 1] == keys[slot + 2] for slot in range(0, GLOBAL_BATCH, 3))
    slots = [slot for step in repeated for slot in step]
    assert len({pixels for _, pixels in slots}) == len(slots)


@pytest.mark.parametrize("name", SHARDS)
def test_every_key_comes_once_per_epoch(manifests, references, name):
    """Steps [0, ceil(E*N/G)) hold every sample exactly E times, plus fewer than G of epoch E."""
    num_samples, keys = manifests[name][0].num_samples, [key for step in references[name, 24] for key, _ in step]
    for epochs in range(1, len(keys) // num_samples + 1):
        steps = -(-epochs * num_samples // GLOBAL_BATCH)
        if steps > len(STEPS):
            break
        counts = {f"k{number}": 0 for number in range(num_samples)}
        for key in keys[: steps * GLOBAL_BATCH]:
            counts[key] += 1
        extra = [count - epochs for count in counts.values()]
        assert min(extra) >= 0
        assert sum(extra) < GLOBAL_BATCH


def test_the_pictures_differ_where_they_should(references):
    """The comparisons above would also hold for a loader that gives one picture for ever."""
    slots = [slot for step in references["uneven", 24] for slot in step]
    assert len({pixels for _, pixels in slots}) == len(slots)
    assert len({key for key, _ in slots}) == sum(SHARDS["uneven"])


def test_sources_take_their_part_of_every_batch(references):
    for lanes in LANES:
        for step in references["two sources", lanes]:
            others = sum(key.startswith("other") for key, _ in step)
            assert others == (4 if lanes == 6 else 6)  # of 6 lanes 4.5 and 1.5: the tie goes to the first source


def test_remote_shards_give_the_same_bytes(manifests, references):
    folder = Path(manifests["uneven"][0].location).parent
    with http_server(folder) as url:
        assert run([read_manifest(f"{url}/k.json")], 12, 3, 2, 4) == references["uneven", 12]
