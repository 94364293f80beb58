"""Measure features by kNN, linear evaluation and fine-tuning, and draw nearest neighbors.

Reads: checkpoints and labeled images. Writes: ``result.json``, cached features, neighbor sheets.
May import: pretrain.data, pretrain.augmentation, engine, checkpoint, records.
"""
