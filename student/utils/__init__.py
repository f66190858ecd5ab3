"""Helpers: distributed processes, random seeds, stop signals and DataLoader workers."""
