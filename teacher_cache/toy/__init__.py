"""The toy dataset's own models: a small CLIP and a small Faster R-CNN, and their training."""
