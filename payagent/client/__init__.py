"""The client room: lets Python programs pay through the daemon. One line makes an httpx client pay.

Start with `transport`, the httpx transports, and `paid_request`, which runs one request to its answer without I/O
(`steps` defines what it yields).
- `request` is the client's request, and `retry` sends it again with the proof. `merchant_answers` reads what a
  merchant answers. `streams` keeps bodies that are sent or read twice.
- `daemon_client` is the connection to the daemon. `x402_scheme` plugs into the official x402 SDK.
Never: pycardano, a web framework, the official x402 SDK (users of the scheme install it); decides whether to pay,
which is the daemon's task.
"""

from payagent.client.errors import PayAgentError
from payagent.client.transport import AsyncPayAgentTransport, PayAgentTransport
from payagent.client.x402_scheme import ExactCardanoScheme

__all__ = ["AsyncPayAgentTransport", "ExactCardanoScheme", "PayAgentError", "PayAgentTransport"]
