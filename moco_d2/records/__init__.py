"""The records that a run leaves on disk: run record, linear-evaluation record, metrics.json.

It reads and writes ``record.json``, ``result.json`` and ``metrics.json``. It may import files,
errors and version.
"""
