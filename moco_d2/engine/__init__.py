"""Shared by pretraining and fine-tuning: processes, signals, hooks, resuming, loaders, seeds.

Reads and writes: the state of a run that is resumed, in its OUTPUT_DIR.
May import: checkpoint, config, records, and the floors below them.
"""
