"""The queue of payments that found every UTxO in use and wait, in order, for unconfirmed change.

When several payments arrive at once, the first ones take the UTxOs. Their change can be spent as soon as they are
signed. Then the queue lets as many payments try again as there are UTxOs; later arrivals wait behind them. If
there are too few UTxOs for all that wait, one is split first (agent.utxos.upkeep).
Never: takes a UTxO; keeps a payment waiting longer than `PATIENCE_S` in one turn.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass

from payagent.agent.base.log import log
from payagent.agent.base.requests import AdmittedPayment
from payagent.core.problems import Refused

PATIENCE_S = 30.0
"""Longest wait for a UTxO in seconds. After it the payment gets the refusal that it would have got at once."""

TURNS_MAX = 3
"""How often a payment gets a turn: the UTxOs that are available may not suit it."""

REST_S = 1.0
"""Seconds until the next check after one that left no payment waiting."""


@dataclass(frozen=True, slots=True)
class UtxoCheck:
    """The result of one check of the UTxOs: whether one was split, and how many payments can each take one."""

    is_split: bool
    room: int


@dataclass(frozen=True, slots=True)
class _Place:
    lovelace: int
    turn: asyncio.Future[bool]


class UtxoQueue:
    """Lets payments try for UTxOs in order.

    `signing` holds the payments a task is signing, including those in the queue. `stirred` is set when a claim
    ends or a payment joins. `keep` checks the UTxOs for the waiting payments. It takes their amounts in lovelace.
    """

    def __init__(
        self, signing: Set[str], stirred: asyncio.Event, keep: Callable[[Sequence[int]], Awaitable[UtxoCheck]]
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

    def is_available(self, utxos: int) -> bool:
        """Whether a payment need not wait, given the number of available UTxOs."""
        return not self._places and self._trying < max(1, utxos)

    async def enqueue(
        self,
        payment_id: str,
        lovelace: int,
        admit: Callable[[bool], Awaitable[AdmittedPayment]],
        wants_utxos: Callable[[], bool],
        *,
        is_turn: bool,
    ) -> AdmittedPayment:
        """Call `admit` when it is the payment's turn: now, if `is_turn`, or later.

        `admit` takes whether the payment can still wait. If it can, a refusal for lack of change leaves no record
        and is tried again. A payment waits only if `wants_utxos()`: for others no UTxO is split.
        """
        for _ in range(TURNS_MAX):
            if is_turn:
                self._trying += 1
                try:
                    return await admit(True)
                except Refused as refused:
                    if refused.code != "funds_pending":
                        raise
                finally:
                    self._trying -= 1
            is_turn = wants_utxos() and await self._turn(payment_id, lovelace)
            if not is_turn:
                break
        return await admit(False)

    async def _turn(self, payment_id: str, lovelace: int) -> bool:
        """Wait for a UTxO. Returns False if none can be had, or none in time."""
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
        """Start a check early: with more unconfirmed ancestors, no UTxO could be split."""
        if asyncio.get_running_loop().time() >= self._rests_until_s:
            self._drive()

    def _drive(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._give_turns(), name="payment queue")

    async def _give_turns(self) -> None:
        """Give payments their turns until none waits, each time once the payments being signed have change.

        As many get a turn as there are UTxOs. If there is no UTxO, every waiting payment gets its refusal.
        """
        check = UtxoCheck(True, 0)
        while self._places or check.is_split:
            await self._until_signed()
            check = await self._check_utxos()
            if not check.is_split:
                first = list(self._places.items())[: check.room or None]
                for payment_id, place in first:
                    del self._places[payment_id]
                    if not place.turn.done():
                        place.turn.set_result(check.room > 0)
        self._rests_until_s = asyncio.get_running_loop().time() + REST_S

    async def _until_signed(self) -> None:
        """Wait for the payments being signed now, until each is signed or given up; not for later ones."""
        under_way = self._signing - self._places.keys()
        while under_way & self._signing - self._places.keys():
            self._stirred.clear()
            await self._stirred.wait()

    async def _check_utxos(self) -> UtxoCheck:
        try:
            return await self._keep([place.lovelace for place in self._places.values()])
        except Refused as refused:
            log.info("payment_queue.no_utxo", code=refused.code)
        except Exception as error:
            log.warning("payment_queue.check_failed", error=repr(error), exc_info=True)
        return UtxoCheck(False, 0)
