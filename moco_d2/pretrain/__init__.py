"""Images to checkpoints in the official MoCo layout."""
