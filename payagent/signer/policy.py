"""The signer's policy: checks every body by decoding its bytes, because the daemon may be wrong or compromised.

The ledger counts what landed. The signer counts what it signed in 24 hours, against caps of its own.

Never: trusts the daemon about a body, except for how many outputs may leave the wallet.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, field

from payagent.core.address import LENGTH_OF_TYPE
from payagent.core.hard_caps import FEE_CAP_LOVELACE, TTL_AHEAD_MAX_S, Caps, require_within_caps
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.network import SlotClock
from payagent.core.problems import Refused
from payagent.signer.spend_window import Input, SpendWindow
from payagent.wallet.tx_decode import DecodedBody, DecodedOutput, Undecodable, decode_body


@dataclass(frozen=True, slots=True)
class Clocks:
    """The signer's clocks.

    `now_s` is monotonic and counts suspended time too. `slot` returns the current slot, or None if unknown.
    """

    now_s: Callable[[], float]
    slot: Callable[[], int | None]


def clocks_of(slots: SlotClock | None, now_s: Callable[[], float], time_s: Callable[[], float]) -> Clocks:
    """Build the clocks. `time_s` is POSIX time. `slots` is None on a devnet, whose slots are not known."""
    return Clocks(now_s, lambda: None if slots is None else slots.slot_at(int(time_s() * 1000)))


@dataclass(slots=True)
class Policy:
    """Decides which bodies may be signed.

    `own`: the account's raw address, header included.
    `caps`: the most that one transaction may take out of the wallet.
    `day_caps`: the most for all transactions signed in 24 hours. Transactions that only pay the wallet itself
    count separately, so payments can still be cancelled when `day_caps` are reached.
    """

    own: bytes
    caps: Caps
    day_caps: Caps
    clocks: Clocks
    fee_cap_lovelace: int = FEE_CAP_LOVELACE
    _paid: SpendWindow = field(init=False)
    _fees: SpendWindow = field(init=False)

    def __post_init__(self) -> None:
        self._paid = SpendWindow(self.day_caps, "limits.signed_per_day")
        self._fees = SpendWindow({LOVELACE: self.day_caps.get(LOVELACE, 0)}, "limits.signed_per_day")

    def of_account(self, own: bytes) -> "Policy":
        """The policy for another account, by its raw address. Both count against the same `day_caps`."""
        policy = copy(self)
        policy.own = own
        return policy

    @property
    def network_id(self) -> int:
        return self.own[0] & 15

    def admit(self, body: bytes, paid: int) -> None:
        """Check a body and count it. Only its first `paid` outputs may leave the wallet.

        Refused: `signer_refused` for a body that the wallet never builds; `limit_exceeded`, `asset_not_allowed`.
        """
        try:
            decoded = decode_body(body)
        except Undecodable as error:
            raise _forbidden(f"it is not a plain payment: {error}") from None
        self._require_frame(decoded)
        for place, output in enumerate(decoded.outputs):
            self._require_output(place, output, place < paid)
        leaving = self._leaving(decoded)
        require_within_caps(leaving, self.caps)
        self.count(
            frozenset(decoded.inputs), leaving, all(output.address == self.own for output in decoded.outputs)
        )

    def count(self, inputs: frozenset[Input], leaving: Mapping[str, int], is_own: bool) -> None:
        """Count what leaves the wallet in 24 hours. Refused: `limit_exceeded`.

        A body that pays only the wallet itself (`is_own`), such as a cancel, is free if it spends an input of a
        counted payment at least as large. Otherwise its fee counts separately.
        """
        now_s = self.clocks.now_s()
        if is_own and self._paid.covers(inputs, leaving, now_s):
            return
        outflow = self._fees if is_own else self._paid
        outflow.require(inputs, leaving, now_s)
        outflow.note(inputs, leaving, now_s)

    def _require_frame(self, decoded: DecodedBody) -> None:
        _require(decoded.network_id in (None, self.network_id), f"it is for network id {decoded.network_id}")
        fee, most = decoded.fee_lovelace, self.fee_cap_lovelace
        _require(fee <= most, f"its fee is {fee} lovelace, the cap is {most}")
        _require(len(decoded.inputs) > 0, "it spends nothing")
        slot = self.clocks.slot()
        ahead_s = 0 if slot is None else decoded.ttl_slot - slot
        _require(ahead_s <= TTL_AHEAD_MAX_S, f"it is valid for {ahead_s} s, the maximum is {TTL_AHEAD_MAX_S} s")

    def _require_output(self, place: int, output: DecodedOutput, may_leave: bool) -> None:
        address = output.address
        _require(may_leave or address == self.own, f"output {place} is change, and does not pay this wallet")
        header = address[0] if address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        _require(length is not None and len(address) == length, f"output {place} pays no key address")
        _require(header & 15 == self.network_id, f"output {place} pays an address of another network")

    def _leaving(self, decoded: DecodedBody) -> dict[str, int]:
        others = [output for output in decoded.outputs if output.address != self.own]
        fee = {LOVELACE: decoded.fee_lovelace}
        return add((fee, *({LOVELACE: output.lovelace, **output.assets} for output in others)))


def _require(is_met: bool, why: str) -> None:
    if not is_met:
        raise _forbidden(why)


def _forbidden(why: str) -> Refused:
    """Build the refusal of a body. `why` names output positions and amounts."""
    return Refused("signer_refused", why)
