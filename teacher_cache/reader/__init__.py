"""Reads teacher caches of format 1 (`teacher_cache/FORMAT.md`); needs numpy and h5py only."""
