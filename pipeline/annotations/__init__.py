"""Readers of annotation files in their published forms: HICO-DET, HOIA, V-COCO and COCO.

All forms are read into the same `pipeline.types.Annotation`; `load_annotations` recognises the form
of a file by its content.
"""

from pipeline.annotations.load import AnnotationFile, load_annotations

__all__ = ["AnnotationFile", "load_annotations"]
