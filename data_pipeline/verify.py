"""Read every byte of a data set and say what is wrong with it."""

from collections.abc import Iterator

from data_pipeline.build import sha256
from data_pipeline.decode import decode
from data_pipeline.errors import DataError
from data_pipeline.index import encode_index, index_path, scan
from data_pipeline.manifest import Manifest
from data_pipeline.stream import Shards


def problems(manifest: Manifest) -> Iterator[str]:
    """One line per damaged shard or sample: wrong sum, other index, undecodable image, key that came before."""
    manifest.check()
    shards, seen = Shards(manifest), set()
    for number, url in enumerate(manifest.urls):
        shard = manifest.shard(number)
        if sha256(shard) != manifest.sha256[number]:
            yield f"{url}: differs from its SHA-256 in the manifest"
        elif encode_index(list(scan(shard))) != index_path(shard).read_bytes():
            yield f"{url}: its index does not describe it; make it anew with `vitscale data index`"
        end = int(shards.ends[number])
        for sample in range(end - int(manifest.samples[number]), end):
            try:
                raw = shards.read(sample)
                decode(raw.image)
            except (DataError, ValueError) as error:
                yield f"{url}: sample number {sample}: {error}"
                continue
            if raw.key in seen:
                yield f"{url}: sample {raw.key}: the key came before"
            seen.add(raw.key)
