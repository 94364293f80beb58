"""How good features are: kNN, linear evaluation, fine-tuning of a classifier, neighbors.

Reads: checkpoints and labeled images. Writes: ``result.json``, cached features, sheets.
May import: pretrain.data, pretrain.augmentation, engine, checkpoint, records.
"""
