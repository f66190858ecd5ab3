"""Training data: images with their targets, augmentation, samplers, few-shot labels, extra datasets
and text embeddings.
"""
