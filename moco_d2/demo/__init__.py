"""The whole line on generated images."""
