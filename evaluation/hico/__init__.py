"""The HICO-DET protocol: matching of detections to annotated triplets, average precision in the
default and the known-object setting, and pairwise NMS."""
