"""Patches that make each supported version of Detectron2 work when it is imported.

Reads: the installed Detectron2. Writes: nothing; it patches modules in memory if something is
missing. May import: nothing of this package.
"""
