"""Decodes tensor-aware deltas: numpy and zstandard, nothing of model formats (ADR 0037).

The encoder is `packager.delta`. What the two share is written here once: the wire format, and the arithmetic of the
prediction.
"""
