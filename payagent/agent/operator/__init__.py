"""What an operator changes while the daemon runs."""
