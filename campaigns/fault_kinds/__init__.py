"""The kinds of faults that campaigns/faults.py tries."""
