"""Teachers: open_clip models, prompts, union regions and their resampling."""
