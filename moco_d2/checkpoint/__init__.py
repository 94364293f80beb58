"""Converts any ResNet checkpoint to Detectron2 weights, with proof that nothing was lost.

It reads checkpoints of torch, NumPy, safetensors and TensorFlow's layouts without running their
code. It writes ``.pth``, ``.pkl`` or ``.safetensors`` files with their provenance. It may import
config, records, and everything below them.
"""
