"""What the signer asks of every body, by its own reading of the bytes: whoever asks may be wrong, or not himself.

May import: core, wallet.tx_decode, outflow. Never: believes a word about the body but how many outputs are said to
leave. How much may leave in a day is the ledger's to say, by what landed; a bound over that is kept here, by what
was signed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from payagent.core.address import LENGTH_OF_TYPE
from payagent.core.hard_caps import FEE_CAP_LOVELACE, TTL_AHEAD_MAX_S, Caps, require_within_caps
from payagent.core.money import LOVELACE
from payagent.core.network import SlotClock
from payagent.core.problems import Refused
from payagent.signer.spend_window import Input, SpendWindow
from payagent.wallet.tx_decode import DecodedBody, DecodedOutput, Undecodable, decode_body


@dataclass(frozen=True, slots=True)
class Clocks:
    """`now_s` only moves forward, also while the machine sleeps; `slot` is the network's of this time, or None
    where that is not known.
    """

    now_s: Callable[[], float]
    slot: Callable[[], int | None]


def clocks_of(slots: SlotClock | None, now_s: Callable[[], float], time_s: Callable[[], float]) -> Clocks:
    """`time_s` is POSIX time; a devnet has no slots that are known beforehand."""
    return Clocks(now_s, lambda: None if slots is None else slots.slot_at(int(time_s() * 1000)))


@dataclass(slots=True)
class Policy:
    """`own` is the wallet's address, header and all. `caps` are the most that one transaction takes out of it, and
    `day_caps` the most that all that were signed in 24 hours do.

    Transactions that only cost a fee count apart, so that coins can be taken back when the day's sum is reached.
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

    @property
    def network_id(self) -> int:
        return self.own[0] & 15

    def admit(self, body: bytes, paid: int) -> None:
        """Count a body that may be signed: no more than its first `paid` outputs leave, and they may.

        Refused: `signer_refused` for what the wallet never builds; `limit_exceeded`, `asset_not_allowed` by caps.
        """
        try:
            found = decode_body(body)
        except Undecodable as error:
            raise _forbidden(f"it is no plain payment: {error}") from None
        self._require_frame(found)
        for place, output in enumerate(found.outputs):
            self._require_output(place, output, place < paid)
        leaving = self._leaving(found)
        require_within_caps(leaving, self.caps)
        self._count(frozenset(found.inputs), leaving, found)

    def _count(self, inputs: frozenset[Input], leaving: Mapping[str, int], found: DecodedBody) -> None:
        """What only costs a fee is nothing more where it excludes what is counted, and else counts apart."""
        now_s = self.clocks.now_s()
        is_own = all(output.address == self.own for output in found.outputs)
        if is_own and self._paid.covers(inputs, leaving):
            return
        outflow = self._fees if is_own else self._paid
        outflow.require(inputs, leaving, now_s)
        outflow.note(inputs, leaving, now_s)

    def _require_frame(self, found: DecodedBody) -> None:
        _require(found.network_id == self.network_id, f"it is for network id {found.network_id}")
        fee, most = found.fee_lovelace, self.fee_cap_lovelace
        _require(fee <= most, f"its fee is {fee} lovelace, {most} is the cap")
        _require(len(found.inputs) > 0, "it spends nothing")
        slot = self.clocks.slot()
        ahead_s = 0 if slot is None else found.ttl_slot - slot
        _require(ahead_s <= TTL_AHEAD_MAX_S, f"it could land for {ahead_s} s, {TTL_AHEAD_MAX_S} are the most")

    def _require_output(self, place: int, output: DecodedOutput, may_leave: bool) -> None:
        address = output.address
        _require(may_leave or address == self.own, f"output {place} is change, and does not pay this wallet")
        header = address[0] if address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        _require(length is not None and len(address) == length, f"output {place} pays no key address")
        _require(header & 15 == self.network_id, f"output {place} pays an address of another network")

    def _leaving(self, found: DecodedBody) -> dict[str, int]:
        leaving = {LOVELACE: found.fee_lovelace}
        for output in found.outputs:
            if output.address != self.own:
                for asset, units in ((LOVELACE, output.lovelace), *output.assets.items()):
                    leaving[asset] = leaving.get(asset, 0) + units
        return leaving


def _require(held: bool, what: str) -> None:
    if not held:
        raise _forbidden(what)


def _forbidden(what: str) -> Refused:
    """The body is not one that this signer signs. The text says why, by places and amounts."""
    return Refused("signer_refused", what)
