"""Use of a trained detector: predictions, side-by-side sheets, export.

Reads: a finished run, images. Writes: pictures, JSON, exported models.
May import: the other parts of transfer.
"""
