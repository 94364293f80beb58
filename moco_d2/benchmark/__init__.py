"""Run records -> statistics -> the paper's tables, plots and a page.

Reads: ``record.json`` and ``result.json`` of runs, suites, ``paper_tables.yaml``. Writes: tables,
figures, pages, and the folder of a suite. May import: transfer, pretrain, and what is below them.
Importing it loads neither torch nor Detectron2; runs/places.py imports torch to count GPUs, only
when runs are started.
"""
