"""Dataset folders: `dataset.toml`, published folder layouts, EXIF orientation, and checks."""
