"""Images -> checkpoint: Momentum Contrast, its supervised baseline, and the probes of features.

Reads: image folders, lists, tar shards, registered datasets. Writes: checkpoints in the official
layout, metrics.json, kNN and linear-evaluation results.
May import: cli, engine, checkpoint and the floors below them; never transfer.
"""
