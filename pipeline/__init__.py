"""Code that both phases share.

Vocabularies, zero-shot splits, datasets and their annotation files, image reading, boxes, the toy
dataset, work on clusters, and the command `eoid-data`.
"""
