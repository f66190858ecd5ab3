"""Annotation files in all their published forms, read into the same typed annotations."""

from pipeline.annotations.load import AnnotationFile, load_annotations

__all__ = ["AnnotationFile", "load_annotations"]
