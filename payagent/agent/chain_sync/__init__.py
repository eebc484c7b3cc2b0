"""One pass over the chain: read what it shows, record it, and act on it."""
