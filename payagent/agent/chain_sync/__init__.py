"""One pass over the chain: what it shows, and what follows from it."""
