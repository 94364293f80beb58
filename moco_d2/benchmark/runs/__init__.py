"""Suites: the runs behind a table, their cost, and a runner for those that are missing."""
