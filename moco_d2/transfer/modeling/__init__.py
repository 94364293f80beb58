"""Our backbones and heads in Detectron2's registries.

Reads and writes: nothing. May import: resnet, errors.
"""
