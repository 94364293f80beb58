"""The sources of pretraining's images, and their batches.

Reads: image folders, lists, tar shards, registered datasets. Writes: nothing.
May import: pretrain.augmentation, engine, config.
"""
