"""The V-COCO protocol: average precision of agents and roles, and the benchmark's own file layout
of detections, read, written and converted from HOI detections."""
