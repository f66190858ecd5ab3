"""Helpers without knowledge of the task: errors, files, progress, devices, weights, signals."""
