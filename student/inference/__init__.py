"""Inference: `Detector`, its results, batched prediction, export, and the command `eoid-predict`.

`predict` is the one path from images to detections; `predictor` (Python), `predict_images` (files
and folders), `predict_dataset` (a dataset part) and the evaluations of `student.engine` all use it.
"""
