"""Boxes of persons and objects, and the human-object pairs that the teacher scores.

`base.py` is the interface of detectors, `load.py` loads them by name: `torchvision.py`,
`transformers.py` and `zero_shot.py`, or a user's own class. `class_names.py` maps their classes to
the vocabulary, `proposals.py` reads detections of other programs from a file, and `pairing.py`
forms pairs.
"""
