"""Records -> one self-contained page of tables, figures and detections."""
