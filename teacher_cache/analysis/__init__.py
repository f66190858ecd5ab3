"""Statistics and quality of a finished cache.

`inspect.py` counts its pairs, regions and confidences, `evaluate.py` scores its teacher and
detector against the annotations, `show.py` draws an image with its pairs and their actions, and
`summary.py` formats the numbers as text, JSON and figures.
"""
