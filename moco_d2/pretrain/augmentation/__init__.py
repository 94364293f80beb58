"""Random views of an image (paper section 3.3; v2 section 3), made on workers or on the device.

Reads and writes: nothing. May import: errors.
"""
