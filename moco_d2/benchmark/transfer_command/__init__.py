"""tools/transfer.py: from checkpoints and a dataset to an answer.

It reads checkpoints and annotations, and writes a suite, its runs, tables and a report.
"""
