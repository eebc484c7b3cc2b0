"""The agent's log."""

import structlog

log = structlog.get_logger("payagent.agent")
