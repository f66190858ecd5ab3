"""Dataset folders: `dataset.toml`, the published layouts, and what is wrong with a folder."""
