"""Shards in, batches out. Knows nothing of models, trackers or clusters."""
