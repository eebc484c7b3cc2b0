"""Networks: their names on the wire, what an address and a transaction say of them, slots and time.

May import: the standard library, core.problems. Never: asks a provider (a devnet's clock comes in as a value).
Sources: CIP-34 and the T Backend and x402 documents for names; genesis files for slots.
"""

from dataclasses import dataclass

from payagent.core.problems import Refused


@dataclass(frozen=True, slots=True)
class Network:
    """One network. `network_id` is the ledger's (1 mainnet, 0 test); addresses tell only that much."""

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


def parse_chain(value: object) -> Network:
    """Read an invoice's chain. Names are case-sensitive; a bare "cardano" is refused, for it names no network."""
    network = _BY_ALIAS.get(value) if isinstance(value, str) else None
    if network is None:
        raise Refused(
            "chain_not_understood", f"chain {str(value)[:60]!r} is not a Cardano network by any known name"
        )
    return network


def require_chain(value: object, network: Network) -> None:
    """Refuse (`chain_not_understood`, `chain_wrong`) unless the invoice is for our network."""
    named = parse_chain(value)
    if named is not network:
        raise Refused("chain_wrong", f"the invoice is for {named.name}, this payagent pays on {network.name}")


ROLLBACK_S = 129_600
"""How far a rollback reaches at most: 3k/f slots, 36 hours."""


@dataclass(frozen=True, slots=True)
class SlotClock:
    """Slot <-> POSIX time, from one known point of an era with constant slot length, in whole seconds.

    Cardano's ledger counts slots of 1 s since Shelley on every network named here; a devnet tells its own
    point through its genesis.
    """

    zero_slot: int
    zero_time_s: int

    def slot_at(self, time_ms: int) -> int:
        """The slot that is current at a time; before the era's start the arithmetic goes on."""
        return self.zero_slot + (time_ms // 1000 - self.zero_time_s)

    def time_ms(self, slot: int) -> int:
        """When a slot begins."""
        return (self.zero_time_s + slot - self.zero_slot) * 1000


SLOT_CLOCKS: dict[str, SlotClock] = {
    "mainnet": SlotClock(4_492_800, 1_596_059_091),
    "preprod": SlotClock(86_400, 1_655_769_600),
    "preview": SlotClock(0, 1_666_656_000),
}
