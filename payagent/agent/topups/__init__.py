"""Top-ups: payments that raise a prepaid balance."""
