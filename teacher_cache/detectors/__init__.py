"""Boxes and pairs: torchvision detectors, files of detections, pairing."""
