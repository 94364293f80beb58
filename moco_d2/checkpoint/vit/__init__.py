"""Converts checkpoints of vision transformers to Detectron2's ViT, with the proof."""
