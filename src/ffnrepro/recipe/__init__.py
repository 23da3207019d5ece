"""All code that determines a trained network or its score."""

REVISION = 1
"""Raised when code outside `recipe/`, such as a fix of the decoder, changes numbers."""
