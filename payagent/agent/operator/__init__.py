"""Everything that an operator can change while the daemon runs, and the alerts."""
