"""Training: `run` trains and evaluates one student, `trainer` is the loop, `train_step` one step.

Beside them: inputs, optimizer and schedules, checkpointing and resuming in the run folder, the
metrics log, validation on held-out training images, and evaluation on the test part. `probe` trains
a verb head on a teacher cache alone.
"""
