"""Errors of the data pipeline."""


class DataError(ValueError):
    """A shard, manifest, index or sample is not what it should be; the message says which and what to do."""


class BadSampleError(DataError):
    """The content of one sample is bad: reading it again would not help, another sample would."""
