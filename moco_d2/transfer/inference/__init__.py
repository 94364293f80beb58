"""A trained detector on images: predictions, side-by-side sheets, export.

Reads: a finished run, images. Writes: pictures, JSON, exported programs.
May import: transfer's other parts.
"""
