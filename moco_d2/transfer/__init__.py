"""Detectron2 weights -> detectors and run records, with matched schedules.

Reads: converted weights, registered datasets or paths. Writes: OUTPUT_DIR with its ``record.json``.
May import: the shared parts of pretrain, cli, engine, checkpoint, config, records.
"""
