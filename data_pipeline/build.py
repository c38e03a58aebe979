"""Images into shards: webdataset tars with an index beside each, and a manifest per split.

What each shard will hold is decided first, by arithmetic, so that processes can write them in any order, and again after a
kill: a shard is there complete, with its index and a `.done` file that says what it holds, or not at all.
"""

import fcntl
import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import webdataset as wds

from data_pipeline import storage
from data_pipeline.collection import Collection, Item, merge, with_unique_keys
from data_pipeline.draw import Purpose, permutation
from data_pipeline.encode import Encoded, Encoding, encode
from data_pipeline.errors import BadSampleError, DataError
from data_pipeline.labels import Labels
from data_pipeline.manifest import Manifest, Row, index_beside, read_manifest
from data_pipeline.pool import in_processes
from data_pipeline.remote import shown
from data_pipeline.shardlist import download, expand, index_shard, list_rows
from data_pipeline.sources import Reading, Source, collect

RATIO_IMAGES = 64  # encoded to see how large images become
SAMPLE_BYTES = 2048  # of a sample beside its image: two headers, the label, padding
ORIGINAL = Encoding()


class Done(NamedTuple):
    """A shard that was written."""

    row: Row
    statistics: dict[str, Any]  # of its images, and of what `encode` did with them
    skipped: list[dict[str, str]]


def build(
    collection: Collection,
    out: Path,
    val_fraction: float,
    shard_samples: Iterable[int],
    seed: int,
    *,
    val: Collection | None = None,
    shard_bytes: int = 0,
    shuffle: bool = True,
    encoding: Encoding = ORIGINAL,
    skip_bad: bool = False,
    workers: int | None = 1,
    part: tuple[int, int] = (0, 1),
) -> dict[str, Manifest]:
    """Shuffle, split, write `train` and `val` shards under `out`; a split or shard that was built so already stays as it is.

    `val` are held-out images of their own, instead of a fraction. `shard_samples` are the sizes of successive shards, the
    last repeated; with `shard_bytes` shards become about that large instead. Order and split depend on (seed, number of
    images) only. `skip_bad` leaves out images that cannot be decoded, and lists them in `SPLIT.skipped.jsonl`.
    `part` (k, n) writes every n-th shard from the k-th on, beside other parts; a build of the whole then lists them.
    """
    sizes = list(shard_samples)
    _check(val_fraction, sizes, shard_bytes, encoding)
    splits = _split(collection, val_fraction, val, seed, shuffle)
    built = {
        "images": Collection([image for images in splits.values() for image in images], collection.classes).digest(),
        "seed": str(seed),
        "shuffle": str(shuffle),
        "val_fraction": "images of its own" if val else str(val_fraction),
        "shard_samples": "" if shard_bytes else " ".join(map(str, sizes)),
        "shard_bytes": str(shard_bytes),
        **{name: str(value) for name, value in encoding._asdict().items()},
    }
    whole = part == (0, 1)
    _claim(out, built, whole)
    write = partial(write_shard, encoding=encoding, skip_bad=skip_bad)
    for name, images in splits.items():
        if (out / f"{name}.json").exists():
            _forget_notes(out.glob(f"{name}-*.done"))  # of a build that was killed as it removed them
        elif images:
            parts = _parts(images, sizes, shard_bytes, encoding)
            shards = [(out.absolute() / f"{name}-{number:05d}.tar", part) for number, part in enumerate(parts)]
            done = list(in_processes(write, shards[part[0] :: part[1]], workers, f"{name} shards"))
            if whole:
                _list_split(out / name, done, collection.classes)
    manifests = {name: read_manifest(str(path)) for name in splits if (path := out / f"{name}.json").exists()}
    for manifest in manifests.values():
        manifest.check()
    return manifests


def _check(val_fraction: float, sizes: list[int], shard_bytes: int, encoding: Encoding) -> None:
    if not 0 <= val_fraction <= 1:
        raise DataError(f"held-out part: {val_fraction}; it must lie in [0, 1]")
    if not shard_bytes and (not sizes or min(sizes) < 1):
        raise DataError(f"images per shard: {sizes}; give one or more sizes, each at least 1")
    if encoding.restart_all and not shutil.which("jpegtran"):
        raise DataError("--restart-all needs the program jpegtran; install libjpeg-turbo (Debian: libjpeg-turbo-progs)")


def _split(collection: Collection, fraction: float, val: Collection | None, seed: int, shuffle: bool) -> dict[str, list[Item]]:
    """The images of each split in order, with keys that are unique in both together."""
    if val and val.classes and not collection.classes:
        raise DataError("the val images have classes with names, the others only numbers; give the names with --classes FILE")
    own = merge([val], collection.classes).images if val else []
    images = with_unique_keys(collection.images + own)
    order = permutation(len(collection.images), seed, Purpose.SPLIT)
    held = 0 if val else held_out(len(order), fraction)
    own_order = permutation(len(own), seed, Purpose.SPLIT) + len(order)
    numbers = {"val": np.concatenate([order[:held], own_order]), "train": order[held:]}
    return {name: [images[i] for i in (part if shuffle else np.sort(part))] for name, part in numbers.items()}


def held_out(count: int, fraction: float) -> int:
    """Images of so many that go to the val split."""
    return round(count * fraction)


def _parts(images: list[Item], sizes: list[int], shard_bytes: int, encoding: Encoding) -> list[list[Item]]:
    """The images of each shard: so many, or cut where their size, estimated from that of the sources, passes `shard_bytes`."""
    if shard_bytes:
        estimated = np.array([image.num_bytes for image in images]) * _growth(images, encoding) + SAMPLE_BYTES
        ends = np.flatnonzero(np.diff((np.cumsum(estimated) - estimated) // shard_bytes)) + 1
    else:
        ends = np.cumsum([*sizes, *itertools.repeat(sizes[-1], len(images) // sizes[-1])])
    edges = [0, *ends[ends < len(images)].tolist(), len(images)]
    return [images[start:end] for start, end in itertools.pairwise(edges)]


def _growth(images: list[Item], encoding: Encoding) -> float:
    """By what factor encoding changes the size of images, measured on some."""
    if encoding.longest is encoding.shortest is None:
        return 1.0
    before = after = 0
    for i in permutation(len(images), 0, Purpose.SPLIT)[:RATIO_IMAGES]:
        content, extension, others = images[i].read()
        with suppress(BadSampleError):  # said when its shard is written
            after += len(encode(content, extension, encoding).content) + sum(map(len, others.values()))
            before += images[i].num_bytes
    return after / before if before else 1.0


def _claim(out: Path, built: dict[str, str], alone: bool) -> None:
    """What is there was built in the same way: otherwise one split could hold images of the other."""
    note, tar = out / "build.json", next(out.glob("*.tar"), None)  # looked for first: parts begin together
    if note.exists():
        before = json.loads(note.read_text())
        changed = [f"{key} was {before.get(key)}, is {value}" for key, value in built.items() if before.get(key) != value]
        if changed:
            raise DataError(f"{out}: was built otherwise ({'; '.join(changed)}); give another --out, or remove {out}")
    elif tar:
        raise DataError(f"{out}: holds tars, and no build.json that says how they were built; give another --out")
    else:
        storage.write(str(note), json.dumps(built, indent=1).encode())
    for leftover in out.glob("*.partial") if alone else ():  # of a build that was killed
        leftover.unlink()


def write_shard(task: tuple[Path, list[Item]], encoding: Encoding, skip_bad: bool) -> Done:
    """A webdataset tar of the images and its index, unless they are there."""
    path, images = task
    note = path.with_suffix(".done")
    if note.exists() and (done := _read_done(note, path)):
        return done
    partial_tar = path.with_suffix(f".{os.getpid()}.partial")
    try:
        written, skipped = _write_tar(partial_tar, images, encoding, skip_bad)
        row = index_shard((str(partial_tar), index_beside(str(path))), Labels("cls"))
        partial_tar.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room and run the same command again") from None
    finally:
        partial_tar.unlink(missing_ok=True)
    row = row._replace(url=str(path))
    done = Done(row, _statistics(row, written, skipped), skipped)
    storage.write(str(note), json.dumps(done).encode())
    return done


def _read_done(note: Path, shard: Path) -> Done | None:
    """None: the shard or its index is not what the note says."""
    stated, *others = json.loads(note.read_text())
    row = Row(*stated)._replace(url=str(shard))
    sizes = [path.stat().st_size if path.exists() else -1 for path in (shard, shard.with_suffix(".idx"))]
    return Done(row, *others) if sizes == [row.bytes, row.index_bytes] else None


def _write_tar(
    path: Path, images: list[Item], encoding: Encoding, skip_bad: bool
) -> tuple[list[tuple[Item, Encoded]], list[dict[str, str]]]:
    """Owner and time are constants, so that the same images give the same bytes."""
    written, skipped = [], []
    with path.open("wb") as file:
        with wds.TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            for image in images:
                content, extension, others = image.read()
                try:
                    encoded = encode(content, extension, encoding)
                except BadSampleError as error:
                    if not skip_bad:
                        raise DataError(
                            f"{image.name}: cannot be decoded ({error}); mend or remove it, or give --skip-bad"
                        ) from None
                    skipped.append({"key": image.key, "source": image.name, "reason": str(error)})
                    continue
                label = str(image.label).encode()
                tar.write({**others, "__key__": image.key, encoded.extension: encoded.content, "cls": label})
                written.append((image, encoded._replace(content=b"")))
        file.flush()
        os.fsync(file.fileno())
    return written, skipped


def _statistics(row: Row, written: list[tuple[Item, Encoded]], skipped: list[dict[str, str]]) -> dict[str, Any]:
    changes = Counter(encoded.change for _, encoded in written)
    sides = np.array([(encoded.width, encoded.height) for _, encoded in written] or [(0, 0)])
    width, height = sides.mean(axis=0).round(1).tolist()
    return {
        "shard": Path(row.url).name,
        "images": row.samples,
        "bytes": row.bytes,
        **{change: changes[change] for change in ("kept", "marked", "reencoded")},
        "mean_width": width,
        "mean_height": height,
        "labels": len({image.label for image, _ in written}),  # different ones
        "skipped": len(skipped),
    }


def _list_split(path: Path, shards: Sequence[Done], classes: list[str]) -> None:
    """The manifest of a split, its statistics beside it, and what was left out."""
    rows = [done.row for done in shards if done.row.samples]
    if not rows:
        raise DataError(f"{path}: every image was left out, see --skip-bad; the first: {shards[0].skipped[0]}")
    columns = list(shards[0].statistics)
    table = [columns, *([str(done.statistics[name]) for name in columns] for done in shards)]
    storage.write(f"{path}.shards.csv", "".join(",".join(line) + "\n" for line in table).encode())
    if skipped := [image for done in shards for image in done.skipped]:
        storage.write(f"{path}.skipped.jsonl", "".join(f"{json.dumps(image)}\n" for image in skipped).encode())
    list_rows(rows, f"{path.absolute()}.json", classes)
    _forget_notes(Path(done.row.url).with_suffix(".done") for done in shards)


def _forget_notes(notes: Iterable[Path]) -> None:
    for note in notes:
        note.unlink(missing_ok=True)


@contextmanager
def spool(out: Path, alone: bool = True) -> Iterator[str]:
    """A folder for copies of what cannot be read at random, in `out`, which goes if it is empty, and is ours alone meanwhile
    or shared by builds of parts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(f"{out}: another build is at work there; wait for its end, or give another --out") from None
    except OSError as error:
        raise DataError(f"{out}: is no folder to write to ({error.strerror}); give another --out") from None
    try:
        for leftover in out.glob(".spool-*") if alone else ():  # of a build that was killed
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=out, prefix=".spool-") as folder:
            yield folder
    finally:
        os.close(lock)
        with suppress(OSError):  # not empty
            out.rmdir()


def gather(sources: Sequence[str], reading: Reading, workers: int | None = 1) -> Collection:
    """The images of all sources, with one list of classes. Remote sources and pipes are copied to the spool, whole."""
    files = [file for name in expand(sources) for file in _files(name, reading)]
    collection = merge(list(in_processes(partial(collect, reading=reading), files, workers, "collect")), reading.classes)
    if not collection.images:
        raise DataError(f"{', '.join(map(shown, sources[:3]))}: no images there; nothing to build")
    return collection


def _files(name: str, reading: Reading) -> list[Source]:
    """A source as local files: of a folder without class folders its tars, or else its parquet files."""
    if name.startswith("pipe:"):
        if not reading.allow_pipe:
            raise DataError(f"{name}: would run a command of the shell; give --allow-pipe if you trust it")
        copy = Path(tempfile.mkdtemp(dir=reading.spool), "pipe.tar")
        try:
            with wds.gopen(name) as stream, copy.open("wb") as file:
                shutil.copyfileobj(stream, file)
        except OSError as error:
            raise DataError(f"{name}: the command failed ({error}); run it by itself to see why") from None
        return [Source(copy, name)]
    if storage.is_remote(name):
        copy = Path(tempfile.mkdtemp(dir=reading.spool), PurePosixPath(name.partition("?")[0]).name)
        with copy.open("wb") as file:
            download(name, file)
        return [Source(copy, shown(name))]
    path, inside = storage.local_path(name), []
    if path.is_dir() and not any(inner.is_dir() for inner in path.iterdir()):
        inside = sorted(path.glob("*.tar")) or sorted(path.glob("*.parquet"))
    return [Source(file, str(file)) for file in inside] or [Source(path, name)]
