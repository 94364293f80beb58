"""Checks before the first step that find everything that would make the result of a run wrong.

Reads: the resolved config, the annotations, the machine's memory. Writes: nothing.
May import: transfer.data, transfer.evaluation, config.
"""
