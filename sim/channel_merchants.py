"""The simulated merchants that sell by channel: the devnet's channel shop behind the network of `merchants`.

A shop has a mood for some minutes, and then another one. Its claims are transactions like any other: a mempool
drops them, forks undo them, and they race what the payer does.

Never: knows the agent's state.
"""

import base64
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import httpx
from starlette.routing import Route, Router

from payagent.core.money import LOVELACE
from payagent.devnet.channel_api import ChannelApi
from payagent.devnet.channel_script import SCRIPT_ADDRESS, ChannelDatum, read_datum
from payagent.devnet.channel_shop import ChannelShop, ChannelShopSettings, Mood, Sold, Unsold
from payagent.devnet.faulty_responses import ABORT
from payagent.devnet.ledger import OutRef, TxOut
from payagent.devnet.node import Node
from sim.merchants import SimResponse, SimShop, SimTransport, UnreachedError, call_app
from sim.network import Net

PROBE = "x-sim-probe"
"""Marks payagent's own questions. No shop reads it."""

FORGETFUL = ("old_record", "forget_replays", "overcharge", "undercharge", "no_charge")
"""Moods in which a shop may charge for one request twice."""

MOODS: tuple[Mood, ...] = (
    *("overcharge", "undercharge", "no_charge", "drop_answer", "forget_replays", "old_record", "count_above"),
    *("foreign_iou", "claim_early", "claim_late", "claim_backwards", "refuse_unknown", "busy", "vanish"),
    *("settle_late", "raise_price", "swap_provider", "swap_script"),
)


class _ShopsNode:
    """The shop's node. Whatever it sends, the adversary keeps."""

    def __init__(self, net: Net) -> None:
        self._net, self._node = net, net.node
        self.chain, self.faucet, self.now_ms = net.chain, net.node.faucet, net.node.now_ms

    def submit(self, raw: bytes) -> str:
        self._net.release(raw)
        return self._net.submit(raw)


class _Shop(ChannelShop):
    """Counts what it charges, by request."""

    def __init__(self, node: Any, terms: Callable[[], Any], name: str) -> None:
        super().__init__(node, terms, name)
        self.charged: Counter[str] = Counter()
        self.is_asked_for_count = False

    def find(self, channel_id: str) -> tuple[OutRef, TxOut, ChannelDatum]:
        """The channel's output, which descends from its opening, and not one that a stranger made alike."""
        for ref, out in self._node.chain.utxos_at(SCRIPT_ADDRESS):
            if ref[0] not in self._node.chain.faucet_ids:
                datum = read_datum(out.inline_datum)
                if datum.tag.hex() == channel_id:
                    return ref, out, datum
        raise Unsold("invalid_batch_settlement_cardano_channel_not_found")

    def ask(self, path: str, payment: Any) -> Sold | None:
        before = self.counts["served"]
        sold = super().ask(path, payment)
        if self.counts["served"] > before and not self.is_asked_for_count:
            self.charged[path] += 1
        return sold


@dataclass(frozen=True, slots=True)
class ShopHabits:
    """What a merchant's channel shop does in a run: its price, and how often it is in one of its moods."""

    price: int
    moods: tuple[Mood, ...]
    is_moody: float
    claims: float
    """How often it claims, per minute."""


class ChannelSimShop(SimShop):
    """A merchant that sells by channel too, under /channel/."""

    habits: ShopHabits
    channels: _Shop

    def sell_by_channel(self, habits: ShopHabits, node: Node, presented: Callable[[str, int], None]) -> None:
        """Begin to. `presented` gets each voucher that arrives."""
        self.habits, self._presented = habits, presented
        terms = self.merchant
        self.channels = _Shop(
            _ShopsNode(self._net),
            lambda: replace(terms.terms, price_units=habits.price, asset=LOVELACE),
            self.name,
        )
        self.channels.set(ChannelShopSettings(is_open=True))
        route = Route("/channel/{thing:path}", ChannelApi(self.channels, node.tick).paid, methods=["GET", "POST"])
        self._app = Router([route, *self._app.routes])
        self.was_forgetful = self.has_remembered = False

    def be(self, mood: Mood | None) -> None:
        """Take another mood. A shop whose memory comes back may send the stored answer to another request."""
        self.has_remembered |= self.channels.settings.mood == "old_record" != mood
        self.channels.settings = replace(self.channels.settings, mood=mood)
        self.was_forgetful |= mood in FORGETFUL
        self._story.reach(f"a merchant's mood: {mood}")
        self._story.tell(f"{self.name} is in the mood {mood}")

    async def call(self, method: str, target: str, headers: dict[str, str], body: bytes) -> SimResponse:
        proof = headers.get("payment-signature")
        if target.startswith("/channel/") and proof is not None:
            voucher = json.loads(base64.b64decode(proof))["payload"]["voucher"]
            self._presented(voucher["channelId"], int(voucher["maxClaimableAmount"]))
        return await super().call(method, target, headers, body)

    async def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> SimResponse:
        self.channels.is_asked_for_count = PROBE in headers
        aborted: list[bool] = []
        answer = await call_app(
            self._app, method, target, headers, body, f"{self.name}.example", {ABORT: lambda: aborted.append(True)}
        )
        if answer is None:
            raise UnreachedError
        return answer


class ProbingTransport(SimTransport):
    """The daemon's own transport, whose requests are marked."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.headers[PROBE] = "1"
        return await super().handle_async_request(request)


def draw_habits(rng: Random) -> ShopHabits:
    """What a merchant does in a run."""
    moods = tuple(rng.sample(MOODS, rng.choice((1, 2, 3, 5))))
    price = rng.choice((1_000, 20_000, 100_000, 400_000))
    return ShopHabits(price, moods, rng.choice((0.0, 0.3, 0.6, 0.8)), rng.choice((0.0, 0.1, 0.4)))
