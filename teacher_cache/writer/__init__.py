"""Writes teacher caches of format 1 (`teacher_cache/FORMAT.md`).

`plan.py` and `settings.py` describe a build in `build.json`, `shard.py` writes HDF5 files,
`manifest.py` finishes a cache, and `checksum.py` writes the JSON files.
"""
