"""Readers of annotation files in their published formats: HICO-DET, HOIA, V-COCO, SWIG-HOI
and COCO.

All formats are read into the same `pipeline.types.Annotation`; `load_annotations` recognises the
format of a file by its content.
"""

from pipeline.annotations.load import AnnotationFile, load_annotations

__all__ = ["AnnotationFile", "load_annotations"]
