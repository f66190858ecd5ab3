"""The embedded world's own teacher and detector: small, real, trained on other pictures."""
