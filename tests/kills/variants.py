"""Daemons with a seeded bug, which the checks must catch, and one whose machine has a bad clock.

Each is applied in the daemon's own process, before it serves.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import payagent.agent.agent
import payagent.agent.channels.calls
import payagent.agent.channels.moves
import payagent.daemon.compose
from payagent.agent.agent import Agent
from payagent.agent.base.ports import SystemClock
from payagent.agent.base.requests import PaymentRequest
from payagent.agent.channels.calls import ChannelCalls
from payagent.agent.payments.sign import PaymentSigner
from payagent.core.aggregate import PaymentRow
from payagent.core.channel import CallState, Channel, ChannelMove, Promise
from payagent.settings.schema import Settings
from payagent.store.db.unit import Unit
from payagent.store.rows import channels
from payagent.wallet.tx_plan import TxPlan, assemble


def leave_then_persist(_settings: Settings) -> None:
    """Sends a transaction before its attempt is durable (against "persist first")."""

    class Hasty(PaymentSigner):
        async def sign(self, payment_id: str, plan: TxPlan, signed: object = None) -> None:
            signature = await self._signer.signature(plan.body, plan.paid)
            raw = assemble(plan, self._signer.public_key, signature)
            await self._context.all_providers[0].submit(raw, plan.tx_id)
            await super().sign(payment_id, plan)

    setattr(payagent.agent.agent, "PaymentSigner", Hasty)  # noqa: B010  a module does not export what it imports


def give_up_at_restart(settings: Settings) -> None:
    """Treats payments interrupted by a crash as failed and releases their UTxOs: no answer is no failure."""
    with closing(sqlite3.connect(settings.data_dir / "ledger.db")) as conn, conn:
        open_states = "('reserved', 'signed', 'in_flight')"
        conn.execute(
            "DELETE FROM reservations WHERE payment_id IN (SELECT id FROM payments WHERE state IN "
            + open_states
            + ")"
        )
        conn.execute("UPDATE payments SET state = 'rejected' WHERE state IN " + open_states)
    conn.close()


JUMPS_MS = (0, 2 * 86_400_000, 0, -2 * 86_400_000)
"""How far off the clock is, one after the other for half a second each."""


def jumping_clock(_settings: Settings) -> None:
    """Its clock is right until it is asked to pay, and then jumps days ahead, back, and days behind."""
    begun_s = None

    class Jumping(Agent):
        async def pay(self, ask: PaymentRequest) -> tuple[PaymentRow, bool]:
            nonlocal begun_s
            begun_s = begun_s or time.monotonic()
            return await super().pay(ask)

    def now_ms(_clock: object) -> int:
        jumps = 0 if begun_s is None else int((time.monotonic() - begun_s) / 0.5)
        return time.time_ns() // 1_000_000 + JUMPS_MS[jumps % len(JUMPS_MS)]

    setattr(payagent.daemon.compose, "Agent", Jumping)  # noqa: B010  a module does not export what it imports
    setattr(SystemClock, "now_ms", now_ms)  # noqa: B010  a method is not to be assigned


def void_after_silence(_settings: Settings) -> None:
    """Takes a call by channel without an answer for uncharged, and does not ask its merchant for the count."""

    async def probe(self: ChannelCalls, _merchant: object, _request: object, _offer: object, channel: str) -> None:
        context = self._context
        if (call := channels.unanswered_call(context.conn, channel)) is not None:
            await context.write_at(
                "probe", lambda unit, now_ms: channels.set_call(unit, call, CallState.VOID, None, now_ms)
            )

    setattr(ChannelCalls, "probe", probe)  # noqa: B010  a method is not to be assigned


def promise_nothing(_settings: Settings) -> None:
    """Signs the voucher of a call whose promise is not in the file."""
    move = payagent.agent.channels.moves.move

    def forgetful(unit: Unit, channel: Channel, by: ChannelMove, now_ms: int) -> Channel:
        return channel if isinstance(by, Promise) else move(unit, channel, by, now_ms)

    setattr(payagent.agent.channels.calls, "move", forgetful)  # noqa: B010  as above


def tell_vouchers(checkpoint: Callable[[str], None]) -> None:
    """Make "after voucher" a point: a call's voucher is signed, and its headers have not left."""
    sign = ChannelCalls._sign

    async def told(self: ChannelCalls, call: Any) -> Any:
        voucher = await sign(self, call)
        checkpoint("after voucher")
        return voucher

    setattr(ChannelCalls, "_sign", told)  # noqa: B010  a method is not to be assigned


VARIANTS: dict[str, Callable[[Settings], None]] = {
    "leave_then_persist": leave_then_persist,
    "give_up_at_restart": give_up_at_restart,
    "jumping_clock": jumping_clock,
    "promise_nothing": promise_nothing,
    "void_after_silence": void_after_silence,
}
