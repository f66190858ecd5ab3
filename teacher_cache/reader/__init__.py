"""Reads teacher caches of format 1 (`teacher_cache/FORMAT.md`); needs only numpy and h5py.

`cache.py` gives random access by image, `manifest.py` and `fingerprint.py` identify a cache,
`shard.py` reads its files, `prompts_file.py` reads sentences about new actions, `soft_targets.py`
turns CLIP's scores into action probabilities, and `detections.py` pairs with probabilities into
detections.
"""
