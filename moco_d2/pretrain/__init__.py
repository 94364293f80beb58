"""Images -> checkpoint: Momentum Contrast, its supervised baseline, and how features are judged.

Reads: image folders, lists, tar shards, registered datasets. Writes: checkpoints in the official
layout, metrics.json, kNN and linear-evaluation results.
May import: cli, engine, checkpoint, and what is below them; never transfer.
"""
