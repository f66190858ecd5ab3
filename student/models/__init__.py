"""The student network: backbones, transformer, queries and heads, joined in
`student.models.detector.HOIDetector`. It depends on the configuration only, not on data or losses.
"""
