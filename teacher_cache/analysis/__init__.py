"""Statistics and quality of a finished cache.

`inspect.py` counts its pairs, regions and confidences, `evaluate.py` scores its teacher and
detector against the annotations, and `show.py` draws an image with its pairs and their actions.
`figures.py` draws the numbers of the first two.
"""
