"""Runs the teacher on the images of one shard.

`task.py` makes a shard in any process, `inputs.py` loads dataset and models there, `decoding.py`
reads images, and `extract.py` runs detector and teacher.
"""
