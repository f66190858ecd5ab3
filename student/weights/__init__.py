"""Files of weights: own and published checkpoints, pretrained weights."""
