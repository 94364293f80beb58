"""The networks and losses of pretraining (paper sections 3.1 to 3.3).

Reads and writes: nothing. May import: checkpoint, engine, resnet, errors.
"""
