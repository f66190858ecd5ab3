"""The embedded world: a drawn dataset in HICO-DET's layout, from a seed."""
