"""The pages, one module for each: its paths, and the plain values that its template shows."""
