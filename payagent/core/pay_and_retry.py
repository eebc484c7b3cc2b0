"""Present a payment's proof until the merchant serves the request: the rules of every retry, without I/O.

`present_proof` yields steps. A driver carries out each one and sends its result back, at first None, in this
order:

- `AwaitReady` comes first. With the transaction's id `Present` follows; with None, if time is up, an `End`.
- `Present`. With an `Answered` a `Wait` or an `End` follows; with None, if no answer came, a `Wait`.
- `Wait`. With None `AwaitReady` follows; with True, if there is not so much time, an `End`.
- `End` is the last.

The drivers are `client.retry` (for the httpx transports, `payagent fetch` and the MCP tools),
`client.x402_scheme`, `proxy.payer` and `agent.topups.runner`.
Never: I/O; reads a clock.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from payagent.core.retry_schedule import again_after_s


class RetryVerdict(StrEnum):
    """What a merchant's answer means for the proof."""

    SERVED = "served"
    PENDING = "pending"
    """The merchant has the proof and waits: present it again later."""
    INVOICED = "invoiced"
    """The merchant asks for a payment and says nothing about the proof."""
    USED_UP = "used_up"
    """The proof has already bought another request."""
    REFUSED = "refused"
    """The merchant did not submit the transaction, and will not."""
    UNCLEAR = "unclear"
    """Anything may be true: present the proof again later."""
    OTHER = "other"
    """The answer is not about the payment: pass it to the client, do not repeat the request."""


@dataclass(frozen=True, slots=True)
class AwaitReady:
    """Wait until the merchant can be expected to accept the proof."""


@dataclass(frozen=True, slots=True)
class Present:
    """Send the request with the proof, or without it and with `poll_query`. Record the answer."""

    poll_query: str | None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for so many seconds or longer."""

    seconds: float


class End(Enum):
    """How the retries end. Only `USED_UP` is a reason to pay anew: the payment has served another request."""

    SERVED = auto()
    USED_UP = auto()
    FINAL = auto()
    """The last answer, if there is one, is for the client."""
    UNSERVED = auto()
    """The last answer is a 402. The client gets it as an error, so that nothing pays it."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A merchant's answer to a proof, with the agent's advice."""

    verdict: str
    reason: str  # the merchant's
    status: int
    again_after_s: float | None = None  # until the same proof is presented again; None: never
    poll_query: str | None = None  # what to poll with then
    has_served: bool = False  # whether the payment has served a request before


ProofResult = str | Answered | bool | None
ProofSteps = Generator[AwaitReady | Present | Wait | End, ProofResult, None]


def present_proof() -> ProofSteps:
    """Yield the steps of one payment's proof."""
    tx_id: str | None = None
    poll_query: str | None = None
    end, lost_count = End.FINAL, 0
    while isinstance(ready_tx_id := (yield AwaitReady()), str):
        if ready_tx_id != tx_id:  # the merchant knows nothing of the transaction that replaces another
            tx_id, poll_query = ready_tx_id, None
        answer = yield Present(poll_query)
        if isinstance(answer, Answered):
            end = _end(answer, is_poll=poll_query is not None)
            after_s, poll_query = None if end is End.USED_UP else answer.again_after_s, answer.poll_query
        else:
            lost_count += 1
            after_s = again_after_s(lost_count)
        if after_s is None or (yield Wait(after_s)):
            break
    yield end


def _end(answer: Answered, *, is_poll: bool) -> End:
    """How the retries end if this is the last answer."""
    if answer.verdict == RetryVerdict.SERVED:
        return End.SERVED
    is_asked_anew = answer.verdict in (RetryVerdict.USED_UP, RetryVerdict.INVOICED)
    if is_asked_anew and answer.has_served and not is_poll:
        return End.USED_UP
    return End.UNSERVED if answer.status == 402 else End.FINAL
