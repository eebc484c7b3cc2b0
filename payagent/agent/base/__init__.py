"""What all parts of the agent share."""
