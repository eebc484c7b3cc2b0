"""Keeps UTxOs ready for payments (queue, pool, upkeep) and makes the operator's transfers."""
