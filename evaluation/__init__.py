"""Scores of detections, and images and reports that show them."""
