"""The HICO-DET protocol: matching, average precision, pairwise NMS."""
