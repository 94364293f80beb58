"""Run records and results of pretraining: their form, reading them, importing and comparing."""
