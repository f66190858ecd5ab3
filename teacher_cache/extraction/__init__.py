"""The work on one shard: detect, crop, encode, score."""
