"""What would make a run measure the wrong thing, found before its first step.

Reads: the resolved config, the annotations, the machine's memory. Writes: nothing.
May import: transfer.data, transfer.evaluation, config.
"""
