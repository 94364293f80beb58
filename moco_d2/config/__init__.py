"""The configuration of every run: our keys, and how a yaml file becomes a checked config.

Reads: yaml files, anybody's, with limits and an allow-list of tags. Writes: nothing.
May import: files, errors.
"""
