"""Checkpoint -> Detectron2 weights: read safely, rename completely, prove, then write."""
