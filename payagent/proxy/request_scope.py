"""Run one proxy request from its first byte to its last, and turn every error into an answer.

Never: knows a merchant or the daemon; puts the path, which may hold a token, in a log or an error.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from typing import cast

import structlog
from starlette.types import Receive, Scope, Send

from payagent.api.http.connection_limits import GONE
from payagent.api.http.middleware import refuse_browsers, require_own_target
from payagent.body_buffer import BodyBuffer
from payagent.core.problems import Refused
from payagent.proxy.client_reply import ClientReply
from payagent.proxy.http1 import AnswerBrokenError
from payagent.proxy.request_body import ClientBody

Work = Callable[[ClientBody, ClientReply], Awaitable[None]]

log = structlog.get_logger("payagent.proxy")


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for clients: the `allowed_hosts` of `refuse_browsers`, and the `slow_s` of a `ClientBody`.

    `refusals` counts problems by code.
    """

    allowed_hosts: Set[str]
    slow_s: float
    refusals: Counter[str] = field(default_factory=Counter)


async def run_request(
    scope: Scope, receive: Receive, send: Send, call_id: str, buffer: BodyBuffer, rules: Rules, work: Work
) -> None:
    """Run `work` and report its errors.

    It is cancelled if the client hangs up or is too slow, and by a server that stops.
    """
    reply = ClientReply(scope, receive, send, call_id, rules.refusals)
    task = cast("asyncio.Task[None]", asyncio.current_task())
    with structlog.contextvars.bound_contextvars(request=call_id):
        client_body = ClientBody(receive, buffer, task.cancel, rules.slow_s, scope[GONE])
        try:
            require_own_target(scope)
            refuse_browsers(scope, rules.allowed_hosts)
            await work(client_body, reply)
        except asyncio.CancelledError:
            task.uncancel()
            if client_body.is_slow:
                await reply.problem(Refused("body_too_slow", "the request's body did not arrive in time"))
            elif client_body.is_gone:
                log.info("proxy.client_gone")
            else:  # the server stops
                client_body.close()
                await reply.problem(Refused("daemon_timeout", "payagent shut down while the request was waiting"))
        except Refused as refused:
            client_body.close()
            await reply.problem(refused)
        except AnswerBrokenError as broken:
            log.info("proxy.answer_broken", reason=str(broken))
            client_body.close()
            await reply.problem(Refused("merchant_unreachable", f"its answer broke off: {broken}"))
        except Exception:
            client_body.close()
            log.exception("proxy.failed", method=scope["method"])
            await reply.problem(Refused("internal_error", "the request failed; see the log"))
        finally:
            await client_body.aclose()
