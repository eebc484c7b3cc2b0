"""The client room: lets Python programs pay through the daemon. One line makes an httpx client pay.

Start with `transport`, the httpx transports, and `pay_and_retry`, the steps of one request without I/O (`effects`
defines the steps).
- `request` is the client's request, and `present_proof` retries it with a proof. `merchant_answers` reads what a
  merchant answers. `streams` keeps bodies that are sent or read twice.
- `daemon_client` is the connection to the daemon. `x402_scheme` plugs into the official x402 SDK.
Never: pycardano, a web framework, the official x402 SDK (users of the scheme install it); decides whether to pay,
which is the daemon's task.
"""

from payagent.client.errors import PayAgentError
from payagent.client.transport import AsyncPayAgentTransport, PayAgentTransport
from payagent.client.x402_scheme import ExactCardanoScheme

__all__ = ["AsyncPayAgentTransport", "ExactCardanoScheme", "PayAgentError", "PayAgentTransport"]
