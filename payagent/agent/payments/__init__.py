"""One payment on the event loop, from the 402 to its delivery: read, sign, submit, follow up."""
