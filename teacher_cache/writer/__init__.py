"""Writes teacher caches of format 1: shards, plan, manifest, checksums, the folder's lock."""
