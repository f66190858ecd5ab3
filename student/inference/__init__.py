"""Inference: `Detector`, its results, batched prediction, export, and the command `eoid-predict`.

`batch_predictor` is the one path from images to detections; `detector` (Python), `predict_images`
(files and folders), `predict_video`, `predict_dataset` (a dataset part) and `student.engine`'s
evaluations use it.
"""
