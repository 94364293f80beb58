"""Anybody's checkpoint -> weights for Detectron2, with proof that nothing was lost.

Reads: checkpoints of torch, NumPy, safetensors, TensorFlow's layouts; without running what is in
them. Writes: ``.pth``, ``.pkl`` or ``.safetensors`` files with their provenance.
May import: config, records, and what is below them.
"""
