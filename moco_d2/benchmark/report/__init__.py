"""One self-contained page with tables, figures and detections of run records."""
