"""Run records and results of pretraining: readers, import and comparison."""
