"""The chain as last read, and whether that is good enough to sign by.

Start at `ChainView.require_ready`, which stands before every signature.

Never: asks a provider (agent.chain_sync does).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from payagent.chain.provider import BlockSeen, Genesis, ProtocolParameters
from payagent.chain.provider_state import Odd
from payagent.core.network import SLOT_CLOCKS, Network, SlotClock
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time

TIP_AGE_MAX_S = 300
"""P(no block in 300 s) is 2 in ten million at f = 0.05. An older tip means that the provider is stuck."""

SKEW_MAX_S = 120
EXPIRY_MARGIN_S = 20
TTL_CAP_S = 1800
"""The longest life of an attempt, and so the longest time that a lost one blocks its nonce UTxO."""

QUIET_MS = (TTL_CAP_S + TIP_AGE_MAX_S + SKEW_MAX_S) * 1000
"""How long a restored ledger signs nothing. By then every attempt it does not know has landed or expired.

The sum allows for both clocks. The clock that a TTL was counted from may have been `TIP_AGE_MAX_S` ahead of the
chain. The clock that counts this wait may be `SKEW_MAX_S` behind it.
"""

PINNED = {
    "min_fee_a": 44,
    "min_fee_b": 155_381,
    "coins_per_utxo_byte": 4310,
    "max_tx_size": 16_384,
    "max_value_size": 5000,
}
"""Protocol parameters that payagent builds transactions for.

Its transactions stay valid under lower fees, a lower minimum output or greater sizes. Under higher fees, a higher
minimum output or smaller sizes they may be invalid.
"""

SIZES = ("max_tx_size", "max_value_size")

PASS, HISTORY = "pass", "history"
"""What `ChainView.unread` may name."""


def odd_parameters(parameters: ProtocolParameters) -> Odd | None:
    """How parameters differ from `PINNED`, or None. A stricter one is reported before a looser one."""
    looser = []
    for name, pinned in PINNED.items():
        value = getattr(parameters, name)
        detail = f"the provider says {name} = {value}, payagent is built for {pinned}"
        if value < pinned if name in SIZES else value > pinned:
            return Odd(f"{detail}: if governance changed it, payagent needs an update", forbids=True)
        if value != pinned:
            looser.append(Odd(detail, forbids=False))
    return looser[0] if looser else None


def require_right_clock(off_s: Sequence[int]) -> None:
    """Refused, `clock_skew`, if the clock of every provider that answered differs from the local one.

    `off_s`: by how many seconds the local clock is ahead of each. An old newest block alone could also mean a slow
    chain; the providers' clocks tell the two apart.
    """
    if off_s and min(abs(off) for off in off_s) > SKEW_MAX_S:
        off = min(off_s, key=abs)
        raise Refused("clock_skew", f"the local clock is {abs(off)} s {'ahead' if off > 0 else 'behind'}")


@dataclass(slots=True)
class ChainView:
    """The result of the last pass over the chain, and everything that stops the wallet from signing."""

    network: Network
    slots: SlotClock | None = None
    tip: BlockSeen | None = None
    # the tip up to which the ledger has all deposits; the providers had to agree on them
    booked: BlockSeen | None = None
    problem: str | None = "no provider has answered yet"
    restored_at_ms: int | None = None  # when the ledger was restored from a backup, if it was
    behind: str | None = None  # why the ledger lacks signed attempts (agent.chain_sync.recovery)
    # why nothing is signed while the fleet's database may lack attempts (agent.fleet.failover)
    unproven: str | None = None
    # whether the wallet's newest transactions were compared with the ledger since the start
    is_compared: bool = False
    # tx ids of external spends that freeze signing until an operator unfreezes the wallet
    external_spends: tuple[str, ...] = ()
    # why the last `PASS` over the chain, or the last read of the wallet's `HISTORY`, is incomplete
    unread: dict[str, str] = field(default_factory=dict)

    def note_unread(self, part: str, why: str | None) -> None:
        """Note why a part could not be read; None: it was read."""
        if why is None:
            self.unread.pop(part, None)
        else:
            self.unread[part] = why

    @property
    def why_unseen(self) -> str:
        """Why there is no newest block to use."""
        return self.problem or self._with_reason("the chain and the wallet's UTxOs were not read yet", PASS)

    def _with_reason(self, message: str, part: str) -> str:
        return f"{message}; the last pass ended with: {self.unread[part]}" if part in self.unread else message

    def learn_genesis(self, genesis: Genesis) -> None:
        """Check that the provider's network is ours: addresses do not differ between preprod and preview.

        Refused: `provider_untrusted`.
        """
        if self.network.magic is not None and genesis.network_magic != self.network.magic:
            raise Refused(
                "provider_untrusted",
                f"the provider's chain has magic {genesis.network_magic}, not {self.network.magic}",
                fix=f"Its base_url serves another network than {self.network.name}: change one of the two.",
            )
        if genesis.slot_length_s != 1:
            raise Refused("provider_untrusted", f"the provider's slots last {genesis.slot_length_s} s, not 1 s")
        self.slots = SLOT_CLOCKS.get(self.network.name) or SlotClock(0, genesis.system_start_s)

    def learn_parameters(self, parameters: ProtocolParameters) -> None:
        """Refuse (`provider_untrusted`) parameters under which payagent's transactions may be invalid."""
        odd = odd_parameters(parameters)
        if odd is not None and odd.forbids:
            raise Refused("provider_untrusted", odd.detail)

    def require_ready(self, now_ms: int) -> int:
        """The current slot, if the wallet may sign now.

        Refused: as `require_in_step`; `restored_recently`, `ledger_behind`, `external_spend`; `chain_not_ready`
        until the wallet's newest transactions were compared with the ledger.
        """
        slot = self.require_in_step(now_ms)
        self._require_known_past(now_ms)
        return slot

    def require_in_step(self, now_ms: int) -> int:
        """The current slot, if our clock and the chain's agree. Refused: `chain_not_ready`, `clock_skew`."""
        if self.slots is None or self.tip is None or self.problem is not None:
            raise Refused("chain_not_ready", self.why_unseen)
        slot = self.slots.slot_at(now_ms)
        if self.tip.slot > slot + SKEW_MAX_S:
            raise Refused("clock_skew", f"the chain is {self.tip.slot - slot} s ahead of the local clock")
        if slot - self.tip.slot > TIP_AGE_MAX_S:
            detail = f"the newest block that is known is {slot - self.tip.slot} s old"
            raise Refused("chain_not_ready", self._with_reason(detail, PASS))
        return slot

    def _require_known_past(self, now_ms: int) -> None:
        if self.restored_at_ms is not None and now_ms < (until_ms := self.restored_at_ms + QUIET_MS):
            raise Refused(
                "restored_recently",
                f"nothing is signed until {iso_time(until_ms)}: the ledger was restored from a backup at "
                f"{iso_time(self.restored_at_ms)}, and transactions signed after that backup may still land",
            )
        if self.unproven is not None:
            raise Refused("ledger_behind", self.unproven)
        if self.behind is not None:
            raise Refused("ledger_behind", self._with_reason(f"nothing is signed: {self.behind}", HISTORY))
        if self.external_spends:
            *others, last = self.external_spends
            earlier = f" (and {len(others)} before it)" if others else ""
            raise Refused(
                "external_spend",
                f"nothing is signed until the operator unfreezes the wallet: transaction {last}{earlier} spent "
                "its UTxOs, and the ledger does not know it",
            )
        if not self.is_compared:
            detail = "the wallet's newest transactions were not compared with the ledger yet"
            raise Refused("chain_not_ready", self._with_reason(detail, PASS))

    def block_ms(self, now_ms: int) -> int | None:
        """The time of the newest block; None if there is none or it is too far ahead of the local clock.

        It advances the clock of the limits. Neither a provider alone nor the local clock alone can do that.
        """
        if self.slots is None or self.tip is None or self.tip.slot > self.slots.slot_at(now_ms) + SKEW_MAX_S:
            return None
        return self.slots.time_ms(self.tip.slot)

    def is_after(self, seen_ms: int, tip: BlockSeen) -> bool:
        """Whether a tip is later than every block that existed at `seen_ms`, whatever their heights."""
        return self.slots is not None and tip.slot > self.slots.slot_at(seen_ms) + SKEW_MAX_S

    def landed_ms(self, slot: int, now_ms: int) -> int:
        """When a transaction in a block of that slot starts to count against limits.

        The later of that block's time and the newest block's.
        """
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
        """Whether an attempt for an invoice that ends at `expires_at_ms` could still be signed."""
        try:
            self.ttl_slot(slot, expires_at_ms, min_window_s, from_block=from_block)
        except Refused:
            return False
        return True

    def ttl_slot(
        self, slot: int, expires_at_ms: int | None, min_window_s: int, *, from_block: bool = False
    ) -> int:
        """The attempt's TTL: the invoice's end less `EXPIRY_MARGIN_S`, at most `TTL_CAP_S` from now.

        `from_block`: the time left is counted from the newest block (dialects.TIMED_BY_BLOCK).
        Refused: `invoice_expired` with fewer than `min_window_s` seconds left, because a transaction signed that
        late too often lands after the invoice expired (exactly-once.md R3).
        """
        if self.slots is None or self.tip is None:
            raise Refused("chain_not_ready", "the chain's genesis and newest block were not read yet")
        ttl = slot + TTL_CAP_S
        if expires_at_ms is not None:
            left_s = self.slots.slot_at(expires_at_ms) - slot
            ttl = min(ttl, (min(slot, self.tip.slot) if from_block else slot) + left_s - EXPIRY_MARGIN_S)
        if ttl - slot < min_window_s:
            left_s = max(ttl - slot + EXPIRY_MARGIN_S, 0)
            since = ", counted from the newest block" if from_block else ""
            raise Refused(
                "invoice_expired",
                f"the invoice expires in {left_s} s{since}, {min_window_s + EXPIRY_MARGIN_S} s are needed",
            )
        return ttl
