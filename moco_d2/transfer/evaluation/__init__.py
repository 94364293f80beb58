"""Evaluators as the paper's, PreciseBN, and what average precision is lost to.

Reads: detections and annotations. Writes: what Detectron2's evaluators write in OUTPUT_DIR.
May import: transfer.data, engine.
"""
