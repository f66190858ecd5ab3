"""Boxes of persons and objects, and the human-object pairs that the teacher scores.

`torchvision.py` runs detectors, `class_names.py` maps their classes to the vocabulary,
`proposals.py` reads detections of other programs from a file, and `pairing.py` forms pairs.
"""
