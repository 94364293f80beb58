"""Run records -> statistics -> the paper's tables, plots and a page.

Nothing here imports torch or Detectron2.
"""
