"""Where pretraining's images come from, and how they become batches.

Reads: image folders, lists, tar shards, registered datasets. Writes: nothing.
May import: pretrain.augmentation, engine, config.
"""
