"""What the signer asks of every body, by its own reading of the bytes: whoever asks may be wrong, or not himself.

May import: core, wallet.decode. Never: believes a word about the body but how many outputs are said to leave.
It keeps no count: how much may leave in a day is the ledger's to say, how much at once is said here too.
"""

from dataclasses import dataclass

from payagent.core.address import LENGTH_OF_TYPE
from payagent.core.caps import FEE_CAP_LOVELACE, Caps, require_within_caps
from payagent.core.money import LOVELACE
from payagent.core.problem import Refused
from payagent.wallet.decode import DecodedBody, DecodedOutput, Undecodable, decode_body


class Forbidden(Exception):  # noqa: N818  a verdict
    """The body is none that this signer signs; the text says why, by places and amounts."""


@dataclass(frozen=True, slots=True)
class Policy:
    """`own` is the wallet's address, header and all; `caps` the most that one transaction takes out of it."""

    own: bytes
    caps: Caps
    fee_cap_lovelace: int = FEE_CAP_LOVELACE

    @property
    def network_id(self) -> int:
        return self.own[0] & 15

    def require(self, body: bytes, paid: int) -> None:
        """Raise Forbidden, unless no more than the first `paid` outputs leave, and they may."""
        try:
            found = decode_body(body)
        except Undecodable as error:
            raise Forbidden(f"it is no plain payment: {error}") from None
        self._require_frame(found)
        for place, output in enumerate(found.outputs):
            self._require_output(place, output, place < paid)
        self._require_within_caps(found)

    def _require_frame(self, found: DecodedBody) -> None:
        _require(found.network_id == self.network_id, f"it is for network id {found.network_id}")
        fee, most = found.fee_lovelace, self.fee_cap_lovelace
        _require(fee <= most, f"its fee is {fee} lovelace, {most} is the cap")
        _require(len(found.inputs) > 0, "it spends nothing")

    def _require_output(self, place: int, output: DecodedOutput, may_leave: bool) -> None:
        address = output.address
        _require(may_leave or address == self.own, f"output {place} is change, and does not pay this wallet")
        header = address[0] if address else -1
        length = LENGTH_OF_TYPE.get(header >> 4)
        _require(length is not None and len(address) == length, f"output {place} pays no key address")
        _require(header & 15 == self.network_id, f"output {place} pays an address of another network")

    def _require_within_caps(self, found: DecodedBody) -> None:
        leaving = {LOVELACE: found.fee_lovelace}
        for output in found.outputs:
            if output.address != self.own:
                for asset, units in ((LOVELACE, output.lovelace), *output.assets.items()):
                    leaving[asset] = leaving.get(asset, 0) + units
        try:
            require_within_caps(leaving, self.caps)
        except Refused as refused:
            raise Forbidden(refused.detail) from None


def _require(held: bool, what: str) -> None:
    if not held:
        raise Forbidden(what)
