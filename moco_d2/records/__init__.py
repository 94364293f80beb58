"""What a run leaves on disk to be read again: run record, linear evaluation, metrics.json.

Reads and writes: ``record.json``, ``result.json``, ``metrics.json``.
May import: files, errors, version.
"""
