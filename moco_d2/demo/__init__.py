"""All steps from images to a table of results, on generated images."""
