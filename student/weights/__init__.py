"""Weights files: the student's checkpoint format, published EoID, CDN and DETR checkpoints.

`load` opens a trained detector, `pretrained` initialises a new one, `published` converts the
published state dicts, and `checkpoint_file` writes and reads the student's own checkpoints.
"""
