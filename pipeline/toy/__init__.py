"""The embedded toy dataset: drawn images of people and objects, in HICO-DET's layout."""
