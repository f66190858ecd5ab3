"""CLIP as the teacher: models of open_clip, prompts and union regions.

`clip.py` loads and runs a model, `prompts.py` fills and embeds prompt templates, `regions.py` crops
and resamples union boxes, and `word_tokenizer.py` is the tokenizer of the toy dataset's CLIP.
"""
