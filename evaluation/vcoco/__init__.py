"""The V-COCO protocol: agent and role average precision, detections in the official layout."""
