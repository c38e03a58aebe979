"""Images to build shards from: where each one is, its label, and the names of the classes."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_pipeline import storage
from data_pipeline.errors import DataError
from data_pipeline.index import IMAGE_EXTENSIONS, unpack


class Item(NamedTuple):
    """One image on its way into a shard."""

    key: str
    extension: str  # of the image; "tar": of a sample with all its members, as it lies in a shard
    label: int  # -1 = none
    source: str | bytes  # a local file, or the image itself
    offset: int = 0  # of its bytes in the file
    size: int = 0

    @property
    def num_bytes(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.size

    @property
    def name(self) -> str:
        """For messages."""
        return self.key if isinstance(self.source, bytes) else f"{self.source}: image {self.key}"

    def read(self) -> tuple[bytes, str, dict[str, bytes]]:
        """The image, its extension, and what else belongs to the sample, by extension."""
        content = self.source
        if isinstance(content, str):
            content = storage.read(content, self.offset, self.offset + self.size)
        if self.extension != "tar":
            return content, self.extension, {}
        members = unpack(content)
        extension = next(extension for extension in members if extension in IMAGE_EXTENSIONS)
        return members.pop(extension), extension, members


@dataclass(frozen=True)
class Collection:
    """Images and the names of their classes; without names, labels are just numbers."""

    images: list[Item]
    classes: list[str]

    def digest(self) -> str:
        """Names which images these are, and their classes; not their pixels."""
        digest = hashlib.sha256("\n".join(self.classes).encode())
        for image in self.images:
            digest.update(f"\n{image.key}.{image.extension} {image.label} {image.num_bytes}".encode())
        return digest.hexdigest()


def labelled(images: Sequence[Item], names: Sequence[str]) -> Collection:
    """Images by the name of each one's class; classes are numbered in sorted order."""
    classes = sorted(set(names))
    places = {name: place for place, name in enumerate(classes)}
    return Collection([image._replace(label=places[name]) for image, name in zip(images, names, strict=True)], classes)


def with_unique_keys(images: list[Item]) -> list[Item]:
    """Keys without dots (a key ends at the first) and separators; one that came before gets a number: a, a-2, a-3."""
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    unique = []
    for image in images:
        key = safe = re.sub(r"[^A-Za-z0-9_-]+", "_", image.key)
        while key in seen:
            numbers[safe] = numbers.get(safe, 1) + 1
            key = f"{safe}-{numbers[safe]}"
        seen.add(key)
        unique.append(image if key == image.key else image._replace(key=key))
    return unique


def merge(parts: Sequence[Collection], classes: Sequence[str] = ()) -> Collection:
    """All images, with labels that are places in `classes`, by default in the sorted names of all parts' classes.

    A part without names has its labels already so, and needs `classes` if another part has names.
    """
    named = [part.classes for part in parts if part.classes]
    if named and not classes:
        if len(named) < len(parts):
            raise DataError("classes have names in some sources and only numbers in others; give all names with --classes FILE")
        classes = named[0] if all(names == named[0] for names in named) else sorted({name for names in named for name in names})
    places, limit = {name: place for place, name in enumerate(classes)}, len(classes) or 2**31
    return Collection([_placed(image, part.classes, places, limit) for part in parts for image in part.images], list(classes))


def _placed(image: Item, names: Sequence[str], places: Mapping[str, int], limit: int) -> Item:
    """The image with its label as a place; `names` are the classes that its label counts now, if they have names."""
    label = image.label
    if not -1 <= label < (len(names) or limit):
        raise DataError(f"{image.name}: label {label}, but classes count from 0 to {(len(names) or limit) - 1}")
    if names and label >= 0:
        if names[label] not in places:
            raise DataError(
                f"{image.name}: its class {names[label]!r} is not among the {len(places)} classes ({', '.join([*places][:3])}, "
                "...) of --classes or of the training images; add it there, or leave it out"
            )
        label = places[names[label]]
    return image if label == image.label else image._replace(label=label)


def read_classes(path: str) -> list[str]:
    """Class names from a text file, one per line."""
    names = storage.read_all(path).decode(errors="replace").splitlines()
    if len(set(names)) < len(names) or not all(names):
        twice = next((name for name in names if not name or names.count(name) > 1), "")
        raise DataError(f"{path}: class name {twice!r} is empty or stands there twice; give each class one line of its own")
    return names
