"""What pretraining and fine-tuning share: processes, signals, hooks, resuming, loaders, seeds.

Reads and writes: the state of a run that is resumed, in its OUTPUT_DIR.
May import: checkpoint, config, records, and what is below them.
"""
