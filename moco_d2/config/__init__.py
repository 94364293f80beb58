"""The configuration of every run: our keys, and how a yaml file becomes a checked config.

It reads untrusted yaml files, with limits and an allow-list of tags, and writes nothing. It may
import files and errors.
"""
