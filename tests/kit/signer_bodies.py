"""Transaction bodies encoded by hand, and what the signer answers to each."""

from dataclasses import dataclass, replace

from kit.wallet import ASSETS, OWN, payee
from payagent.wallet import cbor_write as cbor

ADA = 1_000_000
TOKEN, FREE = sorted(ASSETS[1:3])
CAPS = {"lovelace": 20 * ADA, TOKEN: 500}
DAY_CAPS = {"lovelace": 40 * ADA, TOKEN: 1000}
NOW_SLOT = 3_000


@dataclass(frozen=True)
class Body:
    """A hand-made body: by default one payment of 5 ADA with change."""

    outputs: tuple[tuple[bytes, int, tuple[tuple[str, int], ...]], ...] = (
        (payee(0).raw, 5 * ADA, ()),
        (OWN.raw, 94 * ADA, ()),
    )
    fee: int = 200_000
    network_id: int | None = None
    inputs: int = 1
    more: bytes = b""
    ttl_slot: int = 4000
    spends: str = "ab"

    @property
    def raw(self) -> bytes:
        laid = [
            cbor.output(address, lovelace, cbor.multiasset(assets) if assets else b"")
            for address, lovelace, assets in self.outputs
        ]
        utxos = [cbor.tx_input(self.spends * 32, index) for index in range(self.inputs)]
        network = b"" if self.network_id is None else b"\x0f" + cbor.uint(self.network_id)
        return b"".join((
            cbor.head(5, 4 + bool(network)), b"\x00", cbor.TAGGED_SET, cbor.head(4, len(utxos)), *utxos,
            b"\x01", cbor.head(4, len(laid)), *laid,
            b"\x02", cbor.uint(self.fee), b"\x03", cbor.uint(self.ttl_slot),
            network, self.more,
        ))  # fmt: skip


GOOD = Body()
PAID, CHANGE = GOOD.outputs
ELSEWHERE = payee(7).raw


def paying(*outputs: tuple[bytes, int, tuple[tuple[str, int], ...]]) -> Body:
    return replace(GOOD, outputs=outputs)


REFUSED: dict[str, tuple[Body, int, str]] = {
    "foreign change": (paying(PAID, (ELSEWHERE, 94 * ADA, ())), 1, "output 1 is change"),
    "change with another stake key": (
        paying(PAID, (OWN.raw[:29] + bytes(28), 94 * ADA, ())),
        1,
        "output 1 is change",
    ),
    "change without the stake key": (
        paying(PAID, (b"\x60" + OWN.raw[1:29], 94 * ADA, ())),
        1,
        "output 1 is change",
    ),
    "a payment where all is to come back": (GOOD, 0, "output 0 is change"),
    "a payment behind the change": (paying(CHANGE, PAID), 1, "output 1 is change"),
    "a fee above its cap": (replace(GOOD, fee=900_001), 1, "fee is 900001"),
    "more ADA than the cap": (paying((PAID[0], 20 * ADA, ()), CHANGE), 1, "20.2 ADA with its fee"),
    "more ADA than the cap, in two outputs": (
        paying((PAID[0], 10 * ADA, ()), (ELSEWHERE, 10 * ADA, ()), CHANGE),
        2,
        "20.2 ADA with its fee",
    ),
    "more of a token than the cap": (
        paying((PAID[0], 2 * ADA, ((TOKEN, 501),)), CHANGE),
        1,
        f"501 units of {TOKEN} with its fee",
    ),
    "a token's cap, in two outputs": (
        paying((PAID[0], 2 * ADA, ((TOKEN, 250),)), (ELSEWHERE, 2 * ADA, ((TOKEN, 251),)), CHANGE),
        2,
        f"501 units of {TOKEN} with its fee",
    ),
    "another network": (replace(GOOD, network_id=1), 1, "network id 1"),
    "an address of another network": (
        paying((payee(0, network_id=1).raw, 5 * ADA, ()), CHANGE),
        1,
        "another network",
    ),
    "a script": (paying((b"\x10" + PAID[0][1:], 5 * ADA, ()), CHANGE), 1, "no key address"),
    "an address that is cut off": (paying((PAID[0][:-1], 5 * ADA, ()), CHANGE), 1, "no key address"),
    "an address of no bytes": (paying((b"", 5 * ADA, ()), CHANGE), 1, "no key address"),
    "a token that nothing bounds": (
        paying((PAID[0], 2 * ADA, ((FREE, 1),)), CHANGE),
        1,
        "there is no limit for " + FREE,
    ),
    "a TTL of more than 38 hours": (replace(GOOD, ttl_slot=NOW_SLOT + 136_801), 1, "valid for 136801 s"),
    "nothing spent": (replace(GOOD, inputs=0), 1, "spends nothing"),
    "something behind the body": (replace(GOOD, more=b"\x00"), 1, "not a plain payment"),
}
