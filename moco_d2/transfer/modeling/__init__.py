"""Backbones and heads that the package adds to Detectron2's registries.

Reads and writes: nothing. May import: resnet, errors.
"""
