"""Writes teacher caches of format 1 (`teacher_cache/FORMAT.md`).

`plan.py` and `settings.py` describe a build in `build.json`, `lock.py` keeps two builders from
working in one folder, `shard.py` writes HDF5 files, and `manifest.py` finishes a cache.
`checksum.py` writes the JSON files.
"""
