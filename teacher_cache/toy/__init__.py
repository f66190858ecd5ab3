"""Training of the toy dataset's models: a small CLIP and a small Faster R-CNN.

`models.py` contains the recipes and training loops, `train.py` the training data and the processes.
"""
