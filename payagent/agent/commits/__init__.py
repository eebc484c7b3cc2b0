"""What the agent decides and writes inside one write transaction."""
