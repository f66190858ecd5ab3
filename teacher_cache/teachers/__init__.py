"""Teachers: models that give human-object pairs the probabilities of their verbs.

`base.py` is the interface, `load.py` loads a teacher by name, and `text_image.py` is the base of
those that compare images with sentences. `clip.py` loads and runs models of open_clip, `vlm.py`
asks image-text-to-text models of transformers, `prompts.py` fills and embeds prompt templates,
`regions.py` crops and resamples union boxes, and `word_tokenizer.py` is the tokenizer of the toy
dataset's CLIP.
"""
