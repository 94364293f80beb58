"""What happens to Detectron2 when it is imported: the only room that knows its versions.

Reads: the installed Detectron2. Writes: nothing; it patches modules in memory where something is
missing. May import: nothing of this package.
"""
