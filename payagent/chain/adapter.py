"""What the adapters of all kinds of providers share: their parts, how a read ends early, how answers are parsed.

Never: the form of one kind's answers.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar
from urllib.parse import urlsplit

from payagent.chain.json_answers import expect, understood
from payagent.chain.provider import ChainUtxo, Found, NotFound, PlutusScript, Read, T, Turn, Unknown, Why, at_once
from payagent.chain.provider_client import ProviderClient
from payagent.chain.submit_answers import RawAnswer
from payagent.core.money import MAX_LOVELACE
from payagent.core.token_bucket import Rate
from payagent.settings.field_types import parse_base_url

A = TypeVar("A", bound="Adapter")
P = ParamSpec("P")

_PARSED_AT_ONCE_BYTES = 64 * 1024
_NO_SCRIPTS = Unknown("this kind of provider shows no scripts")


has_asked = ContextVar("has_asked", default=False)
"""Whether the read in progress has made a call. A read inside a read continues it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds: to connect, for one call, for a read of many calls, for one submission."""

    connect_s: float = 5.0
    call_s: float = 15.0
    pages_s: float = 120.0
    submit_s: float = 30.0


class Adapter(ABC):
    """The parts of a `ChainProvider` that all kinds have.

    The provider belongs to the event loop that first uses it, and must be closed.
    """

    def __init__(self, name: str, rate: Rate | None, timeouts: Timeouts | None) -> None:
        self.name, self.rate = name, rate
        self._timeouts = timeouts or Timeouts()
        self._http = ProviderClient(self._timeouts.connect_s)
        self._turn: Turn = at_once

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    async def clock_off_s(self, now_ms: Callable[[], int]) -> Read[int]:
        asked_ms = now_ms()
        try:
            server_ms = await self._server_ms()
        except Unanswered as failed:
            return failed.read
        return Found(((asked_ms + now_ms()) // 2 - server_ms) // 1000)

    @abstractmethod
    async def _server_ms(self) -> int:
        """Ask for the time of the server's clock, in Unix milliseconds."""

    async def script_utxos(self, address: str) -> Read[tuple[ChainUtxo, ...]]:
        return _NO_SCRIPTS

    async def script(self, script_hash: str) -> Read[PlutusScript]:
        return _NO_SCRIPTS

    def pace(self, turn: Turn) -> None:
        self._turn = turn

    async def aclose(self) -> None:
        """Abort the calls in progress, which return Unknown, and free the connections."""
        await self._http.aclose()


class Unanswered(Exception):  # noqa: N818  it carries the answer of the read
    """A call of a read found nothing, so the read ends with that."""

    def __init__(self, read: NotFound | Unknown) -> None:
        super().__init__(getattr(read, "reason", "not found"))
        self.read = read


def value_of(read: Read[T]) -> T:
    """Return what a call has found, or end the read."""
    if isinstance(read, Found):
        return read.value
    raise Unanswered(read)


def bounded(
    read: Callable[Concatenate[A, P], Coroutine[Any, Any, Read[T]]],
) -> Callable[Concatenate[A, P], Coroutine[Any, Any, Read[T]]]:
    """Bound the time of a read, and return what made it end early."""

    @wraps(read)
    async def within(adapter: A, /, *args: P.args, **kwargs: P.kwargs) -> Read[T]:
        before = has_asked.set(has_asked.get())
        try:
            async with asyncio.timeout(adapter._timeouts.pages_s):
                return await read(adapter, *args, **kwargs)
        except Unanswered as failed:
            return failed.read
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


def server_ms(answer: RawAnswer, what: str) -> int:
    """Return the time in an answer's headers, in Unix milliseconds, or end the read."""
    if answer.date_s is None:
        raise Unanswered(Unknown(f"{what}: no answer with a date"))
    return answer.date_s * 1000


def whole(rows: tuple[ChainUtxo, ...], what: str) -> Read[tuple[ChainUtxo, ...]]:
    """All outputs of an address, or Unknown if they hold more lovelace than exists."""
    if sum(row.lovelace for row in rows) > MAX_LOVELACE:
        return Unknown(f"{what}: more lovelace than exists")
    return Found(rows)


def limit_of(network: str, rate: Rate) -> Rate | None:
    """The limit of a kind's own servers. A devnet has none."""
    return None if network == "devnet" else rate


class OwnServers(NamedTuple):
    """The servers of the company or community behind a kind: their domain, the path of the API, a base URL."""

    domain: str
    path: str
    example: str

    def have(self, url: str) -> bool:
        """Whether a URL is at one of them."""
        return (urlsplit(url).hostname or "").endswith(self.domain)

    def parse_url(self, text: str) -> str:
        """Return a base URL as it is used. Raises ValueError, with what to write."""
        url = parse_base_url(text)
        if self.have(url) and urlsplit(url).path != self.path:
            raise ValueError(f"write {self.example}")
        return url


def require_form(pattern: re.Pattern[str], text: str) -> None:
    """Check that text for a request has the expected form; anything else is a bug of the caller."""
    expect(pattern.fullmatch(text) is not None, "not in the form that the provider needs")
