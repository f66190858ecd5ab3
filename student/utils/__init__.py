"""Processes, seeds, stop signals and DataLoader workers."""
