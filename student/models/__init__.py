"""The detector: backbone, encoder, two decoders, queries and heads."""
