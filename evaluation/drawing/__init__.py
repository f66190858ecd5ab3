"""Annotated images: boxes, labels, legend."""
