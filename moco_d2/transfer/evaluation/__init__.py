"""The paper's evaluation, PreciseBN, and the AP that is lost to each kind of error.

Reads: detections and annotations. Writes: the files of Detectron2's evaluators in OUTPUT_DIR.
May import: transfer.data, engine.
"""
