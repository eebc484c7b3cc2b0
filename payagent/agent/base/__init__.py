"""Values, ports and helpers shared by all parts of the agent."""
