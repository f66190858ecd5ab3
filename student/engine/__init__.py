"""Training: a run, its trainer, steps, optimiser, checkpoints, logs and evaluation."""
