"""Tables from run records, or of published values, in four formats."""
