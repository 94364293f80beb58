"""Sweeps of the pretraining: figures and tables with the papers' points beside measured ones."""
