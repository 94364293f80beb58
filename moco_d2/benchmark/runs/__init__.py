"""Suites: which runs a table consists of, what they cost, and running what is missing."""
