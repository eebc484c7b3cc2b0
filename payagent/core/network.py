"""Cardano networks: wire names, network ids, and the conversion between slots and time.

Sources: CIP-34, the T Backend documents and the x402 documents for names; genesis files for slots.

Never: asks a provider (a devnet's clock comes in as a value).
"""

from dataclasses import dataclass

from payagent.core.problems import Refused


@dataclass(frozen=True, slots=True)
class Network:
    """One network. `network_id` is the ledger's: 1 mainnet, 0 any test network. Addresses carry only this id."""

    name: str
    network_id: int
    magic: int | None
    aliases: tuple[str, ...]

    @property
    def wire(self) -> str:
        """The dashed name that T Backend uses, such as `cardano-preprod`."""
        return f"cardano-{self.name}"


def _network(name: str, network_id: int, magic: int | None, *cip34: str) -> Network:
    return Network(name, network_id, magic, (f"cardano-{name}", f"cardano:{name}", *cip34))


NETWORKS: dict[str, Network] = {
    "mainnet": _network("mainnet", 1, 764824073, "cip34:1-764824073"),
    "preprod": _network("preprod", 0, 1, "cip34:0-1"),
    "preview": _network("preview", 0, 2, "cip34:0-2"),
    "devnet": _network("devnet", 0, None),
}

_BY_ALIAS = {alias: network for network in NETWORKS.values() for alias in network.aliases}


def how_to_fund(network: str, chain_url: str, address: str) -> str:
    """How people fund a wallet: its address and, except on mainnet, where test ADA is free."""
    faucet = "https://docs.cardano.org/cardano-testnets/tools/faucet"
    if network == "devnet":
        url, body = "/".join(chain_url.split("/")[:3]), f'{{"address": "{address}", "lovelace": "500000000"}}'
        faucet = f"curl -s {url}/devnet/faucet -H 'content-type: application/json' -d '{body}'"
    return f"Send ADA to {address}." + ("" if network == "mainnet" else f" Test ADA is free:\n  {faucet}")


def parse_chain(value: object) -> Network:
    """Parse an invoice's chain. Names are case-sensitive. A bare "cardano" is refused: it names no network."""
    network = _BY_ALIAS.get(value) if isinstance(value, str) else None
    if network is None:
        raise Refused("invoice_invalid/chain", f"chain {str(value)[:60]!r} is not a known Cardano network")
    return network


def require_chain(value: object, network: Network) -> None:
    """Refuse (`invoice_invalid/chain`, `network_mismatch`) unless the invoice is for our network."""
    invoice_network = parse_chain(value)
    if invoice_network is not network:
        raise Refused(
            "network_mismatch", f"the invoice is for {invoice_network.name}, payagent pays on {network.name}"
        )


ROLLBACK_S = 129_600
"""The longest possible rollback: 3k/f slots, which is 36 hours."""


@dataclass(frozen=True, slots=True)
class SlotClock:
    """Converts between slots and POSIX time from one known point, with slots of 1 s.

    Since Shelley, every network named here has slots of 1 s. A devnet gives its point in its genesis.
    """

    zero_slot: int
    zero_time_s: int

    def slot_at(self, time_ms: int) -> int:
        """The slot at a time. Times before the known point are extrapolated."""
        return self.zero_slot + (time_ms // 1000 - self.zero_time_s)

    def time_ms(self, slot: int) -> int:
        """The time when a slot begins, in POSIX milliseconds."""
        return (self.zero_time_s + slot - self.zero_slot) * 1000


SLOT_CLOCKS: dict[str, SlotClock] = {
    "mainnet": SlotClock(4_492_800, 1_596_059_091),
    "preprod": SlotClock(86_400, 1_655_769_600),
    "preview": SlotClock(0, 1_666_656_000),
}
