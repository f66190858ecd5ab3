"""Scores predictions against annotations and draws what people look at."""
