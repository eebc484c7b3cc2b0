"""Top-ups: payments that raise a prepaid balance at a merchant, ordered or automatic."""
