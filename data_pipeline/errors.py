"""The one error of the data pipeline."""


class DataError(ValueError):
    """A shard, manifest, index or sample is not what it should be; the message says which and what to do."""
