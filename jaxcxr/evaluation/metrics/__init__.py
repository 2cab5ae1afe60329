"""Metrics of sets of images: pure functions of arrays."""
