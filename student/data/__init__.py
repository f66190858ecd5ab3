"""Training data: images, targets, transforms, samplers."""
