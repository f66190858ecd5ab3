"""What both phases share: vocabularies, splits, datasets, annotations, images, the toy dataset."""
