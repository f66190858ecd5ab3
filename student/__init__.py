"""Phase two: the end-to-end detector that learns from the teacher cache."""
