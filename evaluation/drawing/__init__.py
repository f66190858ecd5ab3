"""Drawing of annotations and detections on images: boxes, links, labels without overlap, a legend,
and ground truth beside predictions for a few images of a run."""
