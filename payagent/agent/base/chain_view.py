"""The chain as last seen, and whether it is seen well enough to sign by.

May import: core, chain.provider_state, chain.provider (their types). Never: asks the chain itself (watch does).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from payagent.chain.provider import Genesis, ProtocolParameters, Tip
from payagent.chain.provider_state import Odd
from payagent.core.network import SLOT_CLOCKS, Network, SlotClock
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time

TIP_AGE_MAX_S = 300
"""P(no block in 300 s) is 2 in ten million at f = 0.05; an older tip means a provider that stands still."""

SKEW_MAX_S = 120
EXPIRY_MARGIN_S = 20
TTL_CAP_S = 1800
"""The longest life of an attempt: a lost one blocks its anchor no longer than that."""

QUIET_MS = (TTL_CAP_S + TIP_AGE_MAX_S + SKEW_MAX_S) * 1000
"""How long a ledger that was put back signs nothing: what it does not know of has landed or run out by then.

The clock that a TTL was counted from may have been ahead of the chain by as much as a tip may be old, and the one
that this is counted from behind it by as much as is borne.
"""

PINNED = {
    "min_fee_a": 44,
    "min_fee_b": 155_381,
    "coins_per_utxo_byte": 4310,
    "max_tx_size": 16_384,
    "max_value_size": 5000,
}
"""Protocol parameters that the transaction path is built for.

Under a lower fee or least output, or a greater size, what it builds is as valid; under the opposite it may not be.
"""

SIZES = ("max_tx_size", "max_value_size")


def odd_parameters(parameters: ProtocolParameters) -> Odd | None:
    """How parameters differ from those that payagent is built for, if they do; stricter ones are told first."""
    found = []
    for name, pinned in PINNED.items():
        told = getattr(parameters, name)
        detail = f"the provider says {name} = {told}, payagent is built for {pinned}"
        if told < pinned if name in SIZES else told > pinned:
            return Odd(f"{detail}: if governance changed it, a payagent of after that is needed", forbids=True)
        if told != pinned:
            found.append(Odd(detail, forbids=False))
    return found[0] if found else None


def require_right_clock(off_s: Sequence[int]) -> None:
    """Refused, `clock_skew`, when each provider that could be asked has another time than the local clock.

    A clock that is ahead shows as an old newest block, and so does a chain that is slow: providers' clocks tell.
    """
    if off_s and min(abs(off) for off in off_s) > SKEW_MAX_S:
        off = min(off_s, key=abs)
        raise Refused("clock_skew", f"the local clock is {abs(off)} s {'ahead' if off > 0 else 'behind'}")


@dataclass(slots=True)
class ChainView:
    """What the watch learned, and what keeps the wallet from signing.

    `booked`: the tip up to which all deposits are in the books, for which the providers have to list them alike.
    `restored_at_ms`: when the ledger was put back from a backup, if it ever was. `behind`: why the ledger does not
    know all that was signed (agent.chain_sync.recovery). `is_compared`: whether the wallet's newest transactions
    were compared with the ledger since the start. `foreign`: transactions that spent coins of ours and are none of
    ours (agent.chain_sync.external_spends), until an operator thaws. `unread`: why the last look at the chain
    (`look`), or at the wallet's past (`past`), could not be completed. `require_ready` stands before every
    signature.
    """

    network: Network
    slots: SlotClock | None = None
    tip: Tip | None = None
    booked: Tip | None = None
    problem: str | None = "no provider has answered yet"
    restored_at_ms: int | None = None
    behind: str | None = None
    is_compared: bool = False
    foreign: tuple[str, ...] = ()
    unread: dict[str, str] = field(default_factory=dict)

    def note_unread(self, part: str, why: str | None) -> None:
        """Note why a part could not be read, or None that it was."""
        if why is None:
            self.unread.pop(part, None)
        else:
            self.unread[part] = why

    @property
    def why_unseen(self) -> str:
        """Why there is no newest block to go by."""
        return self.problem or self._with_reason("the chain and the wallet's coins were not read yet", "look")

    def _with_reason(self, told: str, part: str) -> str:
        return f"{told}; the last look ended with: {self.unread[part]}" if part in self.unread else told

    def learn_genesis(self, genesis: Genesis) -> None:
        """Bind the provider's network to ours: addresses cannot tell preprod from preview."""
        if self.network.magic is not None and genesis.network_magic != self.network.magic:
            raise Refused(
                "provider_untrusted",
                f"the provider's chain has magic {genesis.network_magic}, not {self.network.magic}",
            )
        if genesis.slot_length_s != 1:
            raise Refused("provider_untrusted", f"the provider's slots last {genesis.slot_length_s} s, not 1 s")
        self.slots = SLOT_CLOCKS.get(self.network.name) or SlotClock(0, genesis.system_start_s)

    def learn_parameters(self, parameters: ProtocolParameters) -> None:
        """Refuse (`provider_untrusted`) parameters under which what payagent builds may not be valid."""
        odd = odd_parameters(parameters)
        if odd is not None and odd.forbids:
            raise Refused("provider_untrusted", odd.detail)

    def require_ready(self, now_ms: int) -> int:
        """The current slot, when the chain is seen well enough to sign.

        Refused: as `require_in_step`; `restored_recently`, `ledger_behind`, `foreign_spend`; `chain_not_ready`
        before the wallet's newest transactions were compared with the ledger.
        """
        slot = self.require_in_step(now_ms)
        self._require_known_past(now_ms)
        return slot

    def require_in_step(self, now_ms: int) -> int:
        """The current slot, when our clock and the chain's agree. Refused: `chain_not_ready`, `clock_skew`."""
        if self.slots is None or self.tip is None or self.problem is not None:
            raise Refused("chain_not_ready", self.why_unseen)
        slot = self.slots.slot_at(now_ms)
        if self.tip.slot > slot + SKEW_MAX_S:
            raise Refused("clock_skew", f"the chain is {self.tip.slot - slot} s ahead of the local clock")
        if slot - self.tip.slot > TIP_AGE_MAX_S:
            old = f"the newest block that is known is {slot - self.tip.slot} s old"
            raise Refused("chain_not_ready", self._with_reason(old, "look"))
        return slot

    def _require_known_past(self, now_ms: int) -> None:
        if self.restored_at_ms is not None and now_ms < (until_ms := self.restored_at_ms + QUIET_MS):
            raise Refused(
                "restored_recently",
                f"nothing is signed until {iso_time(until_ms)}: the ledger was put back from a backup at "
                f"{iso_time(self.restored_at_ms)}, and what was signed after that backup may still land",
            )

        if self.behind is not None:
            raise Refused("ledger_behind", self._with_reason(f"nothing is signed: {self.behind}", "past"))
        if self.foreign:
            *others, last = self.foreign
            beside = f" (and {len(others)} before it)" if others else ""
            raise Refused(
                "foreign_spend",
                f"nothing is signed until an operator thaws: transaction {last}{beside} spent coins of this "
                "wallet, and the ledger does not know it",
            )
        if not self.is_compared:
            told = "the wallet's newest transactions were not compared with the ledger yet"
            raise Refused("chain_not_ready", self._with_reason(told, "look"))

    def block_ms(self, now_ms: int) -> int | None:
        """The time of the newest block; None where there is none, or it is too far ahead of the local clock.

        It moves the limits' clock on: neither the chain as a provider shows it nor the local clock does alone.
        """
        if self.slots is None or self.tip is None or self.tip.slot > self.slots.slot_at(now_ms) + SKEW_MAX_S:
            return None
        return self.slots.time_ms(self.tip.slot)

    def is_after(self, seen_ms: int, tip: Tip) -> bool:
        """Whether a tip is later than all blocks that there were when we saw something, whatever their heights."""
        return self.slots is not None and tip.slot > self.slots.slot_at(seen_ms) + SKEW_MAX_S

    def landed_ms(self, slot: int, now_ms: int) -> int:
        """From when on what is in a block of that slot counts against limits: neither before it nor before now."""
        own_ms = 0 if self.slots is None else self.slots.time_ms(slot)
        return max(own_ms, self.block_ms(now_ms) or 0)

    def is_ready(self, now_ms: int) -> bool:
        try:
            self.require_ready(now_ms)
        except Refused:
            return False
        return True

    def has_time(
        self, slot: int, expires_at_ms: int | None, min_window_s: int, *, from_block: bool = False
    ) -> bool:
        """Whether something could still be signed for an invoice of that end."""
        try:
            self.ttl_slot(slot, expires_at_ms, min_window_s, from_block=from_block)
        except Refused:
            return False
        return True

    def ttl_slot(
        self, slot: int, expires_at_ms: int | None, min_window_s: int, *, from_block: bool = False
    ) -> int:
        """The attempt's TTL: the earlier of the invoice's end less a margin, and the cap.

        `from_block`: what is left of the invoice is counted from the newest block (dialects.TIMED_BY_BLOCK).

        Refuses (`invoice_expired`) when fewer than `min_window_s` are left: a transaction signed then would
        too often land when the invoice is over (docs/exactly-once.md R3).
        """
        if self.slots is None or self.tip is None:
            raise Refused("chain_not_ready", "the chain's genesis and its newest block were not read yet")
        ttl = slot + TTL_CAP_S
        if expires_at_ms is not None:
            left_s = self.slots.slot_at(expires_at_ms) - slot
            ttl = min(ttl, (min(slot, self.tip.slot) if from_block else slot) + left_s - EXPIRY_MARGIN_S)
        if ttl - slot < min_window_s:
            left_s = max(ttl - slot + EXPIRY_MARGIN_S, 0)
            since = ", counted from the newest block" if from_block else ""
            raise Refused(
                "invoice_expired",
                f"{left_s} s are left of the invoice{since}, {min_window_s + EXPIRY_MARGIN_S} s are needed",
            )
        return ttl
