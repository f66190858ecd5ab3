"""What lies behind the scores: error kinds, verb confusion, precision and recall, class tables."""
