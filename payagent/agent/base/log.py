"""The agent's log.

May import: structlog.
"""

import structlog

log = structlog.get_logger("payagent.agent")
