"""Maintenance of caches.

`verify.py` checks and repairs the files of a cache, `merge.py` joins caches, `rescore.py` computes
probabilities again from the stored region embeddings, and `add_prompts.py` embeds prompts of new
actions.
"""
