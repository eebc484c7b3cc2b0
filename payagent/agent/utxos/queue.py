"""The line: payments that found every coin in use wait here, in order, for change that a block need not bring.

Payments that come at once find the coins taken by the first of them, whose change can be spent as soon as it is
signed. Who is let go tries again, one for each coin that is there, and who comes later stands behind; so each coin
is tried for by one. Where what there is would not do for all who wait, a coin is split first (agent.utxos.upkeep).
May import: core.problems, agent.base, structlog. Never: takes a coin; keeps anybody longer than its patience.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass

import structlog

from payagent.agent.base.orders import AdmittedPayment
from payagent.core.problems import Refused

PATIENCE_S = 30.0
"""How long a payment waits for a coin at most. What it is told then, it would have been told at once."""

TURNS_MAX = 3
"""How often a payment gets its turn: the coins that are there may not suit it."""

REST_S = 1.0
"""When nobody waits and nothing was to be done, nobody looks again for so long."""

log = structlog.get_logger("payagent.line")


@dataclass(frozen=True, slots=True)
class Look:
    """What came of a look at the coins: whether one was split, or how many payments can each take one."""

    is_split: bool
    room: int


@dataclass(frozen=True, slots=True)
class _Place:
    lovelace: int
    turn: asyncio.Future[bool]


class UtxoQueue:
    """`signing` holds the payments that somebody carries to their signature now, those in the line among them.

    `stirred` is set when one of them is signed or given up, and here when one is in line.
    `keep` looks at the coins for the payments that wait, by what each pays in lovelace.
    """

    def __init__(
        self, signing: Set[str], stirred: asyncio.Event, keep: Callable[[Sequence[int]], Awaitable[Look]]
    ) -> None:
        self._signing = signing
        self._stirred = stirred
        self._keep = keep
        self._places: dict[str, _Place] = {}
        self._trying = 0
        self._driver: asyncio.Task[None] | None = None
        self._rests_until_s = 0.0

    def __len__(self) -> int:
        return len(self._places)

    def is_free(self, utxos: int) -> bool:
        """Whether a payment need not stand in line, with so many coins in blocks free."""
        return not self._places and self._trying < max(1, utxos)

    async def admit(
        self,
        payment_id: str,
        lovelace: int,
        admit: Callable[[bool], Awaitable[AdmittedPayment]],
        wants_utxos: Callable[[], bool],
        *,
        is_turn: bool,
    ) -> AdmittedPayment:
        """Call `admit` in the payment's turn, which is now or comes.

        `admit` is told whether one can still wait: then a refusal for lack of change leaves no trace, and is tried
        again. Only a payment that `wants_coins` waits: for others no coin is split.
        """
        for _ in range(TURNS_MAX):
            if is_turn:
                self._trying += 1
                try:
                    return await admit(True)
                except Refused as refused:
                    if refused.code != "funds_in_flight":
                        raise
                finally:
                    self._trying -= 1
            is_turn = wants_utxos() and await self._turn(payment_id, lovelace)
            if not is_turn:
                break
        return await admit(False)

    async def _turn(self, payment_id: str, lovelace: int) -> bool:
        """Wait for a coin; False when none can be had, or none in time."""
        place = _Place(lovelace, asyncio.get_running_loop().create_future())
        self._places[payment_id] = place
        self._stirred.set()
        self._drive()
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await place.turn
        except TimeoutError:
            return False
        finally:
            self._places.pop(payment_id, None)

    def nudge(self) -> None:
        """Change is spent deep already: look whether a coin is to be split before none can be."""
        if asyncio.get_running_loop().time() >= self._rests_until_s:
            self._drive()

    def _drive(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._let_go(), name="coins in line")

    async def _let_go(self) -> None:
        """Let payments go until nobody waits: once those that are being signed have their change, as many go as
        there are coins.

        When there is none for anybody, all are told.
        """
        look = Look(True, 0)
        while self._places or look.is_split:
            await self._until_signed()
            look = await self._look()
            if not look.is_split:
                first = list(self._places.items())[: look.room or None]
                for payment_id, place in first:
                    del self._places[payment_id]
                    if not place.turn.done():
                        place.turn.set_result(look.room > 0)
        self._rests_until_s = asyncio.get_running_loop().time() + REST_S

    async def _until_signed(self) -> None:
        """Whoever is on the way to a signature now has it, or has given up; not those who come meanwhile."""
        under_way = self._signing - self._places.keys()
        while under_way & self._signing - self._places.keys():
            self._stirred.clear()
            await self._stirred.wait()

    async def _look(self) -> Look:
        try:
            return await self._keep([place.lovelace for place in self._places.values()])
        except Refused as refused:
            log.info("line.no_coins", code=refused.code)
        except Exception as error:
            log.warning("line.look_failed", error=repr(error), exc_info=True)
        return Look(False, 0)
