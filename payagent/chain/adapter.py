"""What the adapters of several kinds of providers share: how a read ends early, and how a long answer is parsed.

Never: I/O; the form of one kind's answers.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from payagent.chain.json_answers import understood
from payagent.chain.provider import Read, Unknown, Why
from payagent.chain.submit_answers import RawAnswer

P = ParamSpec("P")
T = TypeVar("T")

CONNECT_S, READ_S = 5.0, 120.0
"""How long a connection and a read of many calls may take, in seconds."""

_PARSED_AT_ONCE_BYTES = 64 * 1024


has_asked = ContextVar("has_asked", default=False)
"""Whether the read in progress has made a call. A read inside a read continues it."""


class Unanswered(Exception):  # noqa: N818  it carries the answer of the read
    """A call of a read gave no usable answer, so the read gives none."""

    def __init__(self, unknown: Unknown) -> None:
        super().__init__(unknown.reason)
        self.unknown = unknown


def bounded(read: Callable[P, Coroutine[Any, Any, Read[T]]]) -> Callable[P, Coroutine[Any, Any, Read[T]]]:
    """Bound the time of a read, and return what made it end early."""

    @wraps(read)
    async def within(*args: P.args, **kwargs: P.kwargs) -> Read[T]:
        before = has_asked.set(has_asked.get())
        try:
            async with asyncio.timeout(READ_S):
                return await read(*args, **kwargs)
        except Unanswered as failed:
            return failed.unknown
        except TimeoutError:
            return Unknown("the calls took too long", Why.OUTAGE)
        finally:
            has_asked.reset(before)

    return within


async def parsed(
    answer: RawAnswer, parse: Callable[[Any], T], is_denial: Callable[[Any], bool] = lambda _body: False
) -> Read[T]:
    """Interpret an answer (`understood`). A long one is parsed on a thread, because a page can be megabytes."""
    if len(answer.body) > _PARSED_AT_ONCE_BYTES:
        return await asyncio.to_thread(understood, answer, parse, is_denial)
    return understood(answer, parse, is_denial)


def require_form(pattern: re.Pattern[str], text: str) -> None:
    """Check that text for a request has the expected form; anything else is a bug of the caller."""
    if not pattern.fullmatch(text):
        raise ValueError("not in the form that the provider needs")
