"""payagent: the paying side of HTTP 402 on Cardano."""
