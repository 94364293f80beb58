"""Datasets by name or path, and the mappers that make training samples from them.

Reads: annotations and images. Writes: nothing. May import: engine, errors.
"""
