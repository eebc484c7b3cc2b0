"""client: for Python programs that pay through the daemon. One line makes an httpx client pay.

May import: httpx, the standard library, core. Never: pycardano, a web framework, the official x402 SDK (whoever
uses the scheme has it); decides whether to pay, which is the daemon's.

`purchase` is what a `call` goes through, as `steps` without I/O, and `showing` the part of it with a proof;
`transport` takes the steps, blocking or not. `answers` reads what a merchant says, `bodies` keeps what must be
sent or read twice, `daemon` is the way there, and `scheme` plugs into the official SDK.
"""

from payagent.client.errors import PayAgentError
from payagent.client.transport import AsyncPayAgentTransport, PayAgentTransport
from payagent.client.x402_scheme import ExactCardanoScheme

__all__ = ["AsyncPayAgentTransport", "ExactCardanoScheme", "PayAgentError", "PayAgentTransport"]
