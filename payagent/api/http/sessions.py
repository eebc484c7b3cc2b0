"""The dashboard's sign-in links, sessions, and orders that wait for a confirmation in the terminal.

All of it is in memory, and only hashes of the secrets are: a restart signs everybody out and drops every order.
A link is asked for with an app's token, and the session that it opens acts with that token and ends with it.

Never: stores a link, a code or a cookie; carries out an order twice.
"""

from asyncio import Future
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from typing import Any

from payagent.agent.base.ports import Randomness
from payagent.api.http.tokens import hash_token
from payagent.core.problems import Refused
from payagent.store.rows.apps import AppRow

LINK_S = 120
CODE_TRIES = 5
SESSION_S = 8 * 3600
UNUSED_S = 3600
ORDER_S = 600
SESSIONS_MAX = 64
ORDERS_MAX = 64

_LETTERS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32: no two letters look alike."""

Answer = tuple[int, dict[str, object]]
"""Status and JSON object of a call to the API."""


@dataclass(frozen=True, slots=True)
class SignInLink:
    """A link that opens one session. `asked_at_ms` is for people, `ends_s` by the monotonic clock.

    `code_hash` is None once too many wrong codes were typed.
    """

    token_hash: str = field(repr=False)
    app: AppRow
    asked_at_ms: int
    ends_s: float
    code_hash: str | None = field(repr=False)


@dataclass(slots=True)
class Session:
    """A signed-in browser. `csrf` goes into its forms. `done`: where each order of a form led, or its answer while
    it may still be a double click. `notice`: what its next page says once. `device`: its browser, and from where
    it signed in.
    """

    key: str = field(repr=False)
    app_id: str
    token_hash: str = field(repr=False)
    csrf: str = field(repr=False)
    started_s: float
    used_s: float
    started_at_ms: int
    done: dict[str, str | Future[Any]] = field(default_factory=dict, repr=False)
    notice: str = ""
    device: str = ""

    @property
    def ends_s(self) -> float:
        return min(self.started_s + SESSION_S, self.used_s + UNUSED_S)


@dataclass(slots=True)
class PendingOrder:
    """An order that the terminal confirms. It ends with its session. `facts`: what it does, in pairs for people.

    `code` is None once it was confirmed, and `answer` is set once it was carried out. `token`: an app's new token,
    until the session has shown it.
    """

    id: str
    session: Session
    title: str
    facts: tuple[tuple[str, str], ...]
    back_to: str
    ends_s: float
    ends_at_ms: int
    carry_out: Callable[[], Awaitable[Answer]] = field(repr=False)
    code: str | None = field(repr=False)
    answer: Answer | None = None
    token: str | None = field(default=None, repr=False)


class Sessions:
    """All links, sessions and orders. `now_s` is monotonic, `now_ms` is the time of day."""

    def __init__(
        self, randomness: Randomness, now_s: Callable[[], float], now_ms: Callable[[], int], origin: str
    ) -> None:
        self.origin = origin
        self._randomness = randomness
        self._now_s = now_s
        self._now_ms = now_ms
        self._links: dict[str, SignInLink] = {}
        self._wrong_codes = 0
        self._sessions: dict[str, Session] = {}
        self._orders: dict[str, PendingOrder] = {}

    def ask_in(self, token_hash: str, app: AppRow) -> tuple[str, str]:
        """Make a sign-in link. Returns its secret, and the code to type instead of it."""
        if not self.has_codes:  # what was typed meanwhile was no guess at this one
            self._wrong_codes = 0
        secret, code = self._randomness.token_hex(32), self._code(12)
        self._links[hash_token(secret)] = SignInLink(
            token_hash, app, self._now_ms(), self._now_s() + LINK_S, hash_token(_bare(code))
        )
        return secret, code

    @property
    def has_codes(self) -> bool:
        """Whether a code is open, so that a wrong one was somebody's try."""
        self._drop_ended()
        return any(link.code_hash is not None for link in self._links.values())

    def link(self, secret: str) -> SignInLink | None:
        """The link with this secret, while it is valid. Looking does not use it up."""
        self._drop_ended()
        return self._links.get(hash_token(secret))

    def enter(self, secret: str) -> tuple[Session, str] | None:
        """Use up a link. Returns the new session and its cookie."""
        return self._open(hash_token(secret)) if self.link(secret) is not None else None

    def enter_by_code(self, code: str) -> tuple[Session, str] | None:
        """Use up the link with this code. After `CODE_TRIES` wrong codes no open code is valid any more.

        The links stay valid: they cannot be guessed, so wrong codes cannot keep an operator out.
        """
        self._drop_ended()
        given = hash_token(_bare(code))
        for key, link in self._links.items():
            if link.code_hash is not None and compare_digest(link.code_hash, given):
                return self._open(key)
        self._wrong_codes += 1
        if self._wrong_codes >= CODE_TRIES:
            self._links = {key: replace(link, code_hash=None) for key, link in self._links.items()}
            self._wrong_codes = 0
        return None

    def find(self, cookie: str, *, is_used: bool = True) -> Session | None:
        """The session of a cookie. A use prolongs it; what an open page asks by itself is none."""
        self._drop_ended()
        session = self._sessions.get(hash_token(cookie))
        if session is not None and is_used:
            session.used_s = self._now_s()
        return session

    def is_open(self, session: Session) -> bool:
        """Whether a session has not ended. Safe in any thread: long answers ask, and they run in threads."""
        return session.key in self._sessions and self._now_s() < session.ends_s

    def ends_at_ms(self, session: Session) -> int:
        """When a session ends if it is not used again."""
        return self._now_ms() + int((session.ends_s - self._now_s()) * 1000)

    def end(self, session: Session) -> None:
        self._sessions.pop(session.key, None)
        for order in [one for one in self._orders.values() if one.session is session]:
            del self._orders[order.id]

    def all(self) -> list[Session]:
        """Every session, oldest first."""
        self._drop_ended()
        return list(self._sessions.values())

    def ask_for(
        self,
        session: Session,
        title: str,
        facts: tuple[tuple[str, str], ...],
        back_to: str,
        carry_out: Callable[[], Awaitable[Answer]],
    ) -> PendingOrder:
        """Keep an order until the terminal confirms it."""
        self._drop_ended()
        if len(self._orders) >= ORDERS_MAX:
            raise Refused("rate_limited", f"{ORDERS_MAX} orders wait for the terminal, which is the limit")
        order = PendingOrder(
            id=self._randomness.token_hex(12),
            session=session,
            title=title,
            facts=facts,
            back_to=back_to,
            ends_s=self._now_s() + ORDER_S,
            ends_at_ms=self._now_ms() + ORDER_S * 1000,
            carry_out=carry_out,
            code=self._code(8),
        )
        self._orders[order.id] = order
        return order

    def order(self, session: Session, order_id: str) -> PendingOrder | None:
        """An order of this session."""
        self._drop_ended()
        order = self._orders.get(order_id)
        return order if order is not None and order.session is session else None

    def withdraw(self, order: PendingOrder) -> None:
        self._orders.pop(order.id, None)

    def order_by_code(self, code: str) -> PendingOrder:
        """The order that waits under this code. Refused: `not_found`."""
        self._drop_ended()
        bare = _bare(code)
        for order in self._orders.values():
            if order.code is not None and compare_digest(_bare(order.code).encode(), bare.encode()):
                return order
        raise Refused(
            "not_found", "no order of the dashboard waits under this code: each works once, for 10 minutes"
        )

    def take(self, code: str) -> PendingOrder:
        """Use up a code, and return its order. Refused: `not_found`."""
        order = self.order_by_code(code)
        order.code = None
        return order

    async def confirm(self, order: PendingOrder) -> Answer:
        """Carry out an order that was taken, as its session. An app's new token is for the session alone, and is
        removed from the answer."""
        status, answer = await order.carry_out()
        token = answer.pop("token", None)
        order.token = None if token is None else str(token)
        order.answer = status, answer
        return order.answer

    def _open(self, link_key: str) -> tuple[Session, str]:
        link = self._links.pop(link_key)
        self._wrong_codes = 0
        while len(self._sessions) >= SESSIONS_MAX:
            # of its own app, if it has one: an app that only reads cannot sign the operator out
            self.end(min(self._sessions.values(), key=lambda one: (one.app_id != link.app.id, one.used_s)))
        cookie, now_s = self._randomness.token_hex(32), self._now_s()
        session = Session(
            hash_token(cookie),
            link.app.id,
            link.token_hash,
            self._randomness.token_hex(32),
            now_s,
            now_s,
            self._now_ms(),
        )
        self._sessions[session.key] = session
        return session, cookie

    def _drop_ended(self) -> None:
        now_s = self._now_s()
        self._links = {key: link for key, link in self._links.items() if now_s < link.ends_s}
        self._orders = {key: order for key, order in self._orders.items() if now_s < order.ends_s}
        for session in [one for one in self._sessions.values() if now_s >= one.ends_s]:
            self.end(session)

    def _code(self, count: int) -> str:
        """`count` letters of 5 random bits each, in groups of four."""
        number = int(self._randomness.token_hex(count), 16)
        letters = [_LETTERS[number >> 5 * at & 31] for at in range(count)]
        return "-".join("".join(letters[at : at + 4]) for at in range(0, count, 4))


def _bare(code: str) -> str:
    """A code as typed: case, spaces, dashes and look-alike letters do not matter."""
    return code.upper().replace("-", "").replace(" ", "").translate(str.maketrans("OIL", "011"))
