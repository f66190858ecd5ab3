"""What flows through both phases: types, vocabularies, splits, annotations, datasets, images."""
