"""Run records -> statistics -> the paper's tables, plots and a page.

The room reads ``record.json`` and ``result.json`` of runs, suites and ``paper_tables.yaml``. It
writes tables, figures, pages, and the folder of a suite. It may import transfer, pretrain and the
rooms below them. Its import loads neither torch nor Detectron2. Only runs/places.py imports torch,
to count GPUs when runs are started.
"""
