"""UTxOs that are ready for payments: queue, pool, splits, transfers."""
