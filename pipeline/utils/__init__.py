"""Helpers that know nothing about the task.

Errors, files, settings and command lines, logging, progress, devices, weights files and signals.
"""
