"""Evaluation of detections: the HICO-DET and V-COCO protocols, predictions and results files, error
analysis, drawing of detections on images, and an HTML report. The command is `eoid-eval`."""
