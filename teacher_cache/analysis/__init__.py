"""What a cache holds and how good its teacher is."""
