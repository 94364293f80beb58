"""The board: all initializations and tasks of folders of runs on one page, checks of its rows, and
their export.
"""
