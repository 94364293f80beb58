"""Detectron2 weights to detectors and run records."""
