"""Records -> what may be said of them -> tables in four formats; the paper's the same way."""
