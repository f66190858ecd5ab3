"""Work on finished caches: verify, merge, rescore, add prompts."""
