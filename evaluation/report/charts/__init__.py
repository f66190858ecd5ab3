"""The charts of the report and of other commands."""
