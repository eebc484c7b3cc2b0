"""`reconcile`: compares the wallet's address, as a provider showed it, with the ledger, to the unit.

Each transaction at the address must have moved the units that the ledger booked, or be in flight. Each transaction
that the ledger records as on chain must be there. The unspent total must equal wallet + held, except for the
reported differences.

Never: asks the chain; treats an unanswered question as an absence.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from payagent.audit.finding import Progress
from payagent.chain.address_history import History
from payagent.chain.provider import AddressTx, BlockSeen, Found, Movement, NotFound, Read
from payagent.core.aggregate import TxSeen
from payagent.core.ledger import add
from payagent.core.money import LOVELACE
from payagent.core.payment.machine import ENDED_WITHOUT_PAYING, POSTED, State
from payagent.store.db.unit import Connection
from payagent.store.rows import onchain
from payagent.store.rows.onchain import Claim, OwnTx, clean

PROGRESS_EVERY = 100
_ENDED = (*POSTED, *ENDED_WITHOUT_PAYING)

Units = Mapping[str, int]
DifferenceKind = Literal["missing", "foreign", "differing"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A disagreement between the chain and the ledger.

    `missing`: on chain by the ledger, but not there. `foreign`: on chain, but not recorded in the ledger.
    `differing`: in both, with different amounts.
    """

    kind: DifferenceKind
    table: str
    row: str
    tx_id: str | None
    what: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """A transaction that one side has and the other will have soon. `units`: chain minus ledger."""

    tx_id: str
    payment_id: str | None
    what: str
    units: Units


@dataclass(frozen=True, slots=True)
class Doubt:
    """A question that could not be answered."""

    what: str


@dataclass(frozen=True, slots=True)
class AssetReconciliation:
    """One asset: wallet + held, the unspent total at the address, and how much of the difference is in flight."""

    asset: str
    books_units: int
    chain_units: int
    in_flight_units: int


Told = Difference | InFlight | Doubt | AssetReconciliation | Progress


@dataclass(slots=True)
class _Gap:
    """Units that the chain has beyond the ledger, as far as reported results explain them."""

    explained: dict[str, int] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)

    def take(self, result: Difference | InFlight | Doubt, units: Units) -> None:
        self.explained = add((self.explained, units))
        if isinstance(result, InFlight):
            self.in_flight = add((self.in_flight, units))


def reconcile(
    conn: Connection,
    history: History,
    looked_up: Iterable[tuple[Claim, Read[TxSeen]]],
    booked_height: int,
    since_slot: int,
    *,
    is_forked: bool,
) -> Iterator[Told]:
    """All differences, what is in flight, and the result for each asset. `conn` must be in one read transaction.

    `looked_up`: the transactions on chain by the ledger that the history does not list, `onchain.unlisted`, each
    with the provider's answer. `booked_height`: the height up to which all
    deposits were booked before the history was read. `is_forked`: the block that payagent last saw is no longer on
    the chain.
    """
    gap = _Gap()
    yield from _listed(conn, history, booked_height, gap)
    for claim, read in looked_up:
        result = _of_claim(claim, read, history.tip, since_slot, is_forked)
        if result is not None:
            gap.take(result, _less({}, claim.booked))
            yield result
    yield from _standing(conn, history, gap)


def _listed(conn: Connection, history: History, booked_height: int, gap: _Gap) -> Iterator[Told]:
    count = 0
    for tx in history.transactions:
        movement = history.movements[tx.tx_id]
        own = onchain.own_tx(conn, tx.tx_id)
        booked = clean(add((onchain.booked_others(conn, tx.tx_id), own.booked if own else {})))
        result = (
            _of_ours(tx, own, _net(movement), booked) if own else _of_others(tx, movement, booked, booked_height)
        )
        if result is not None:
            gap.take(result, _less(_net(movement), booked))
            yield result
        count += 1
        if count % PROGRESS_EVERY == 0:
            yield Progress("transactions", count)
    yield Progress("transactions", count)


def _of_ours(tx: AddressTx, own: OwnTx, net: Units, booked: Units) -> Difference | InFlight | None:
    """One of our attempts: once final it must have moved the booked units, until then the held ones."""

    def differs(message: str) -> Difference:
        return Difference("differing", "payments", own.payment_id, tx.tx_id, message)

    if own.state in _ENDED:
        if not own.stands:
            return differs(f"it is {own.state} by another transaction, and this attempt of it is on the chain")
        return (
            None if net == booked else differs(f"the chain moved {_text(net)}, the ledger booked {_text(booked)}")
        )
    if booked:
        return differs(f"it is only {own.state}, and {_text(booked)} is booked for it")
    expected = {LOVELACE: -own.fee_lovelace} if own.kind == "cancel" else _less({}, own.hold)
    if net != expected:
        return differs(f"the chain moved {_text(net)}, it should have moved {_text(expected)}")
    return InFlight(tx.tx_id, own.payment_id, f"on the chain, and {own.state}: not booked yet", net)


def _of_others(
    tx: AddressTx, movement: Movement, booked: Units, booked_height: int
) -> Difference | InFlight | None:
    """An external transaction: it must have moved the units booked as deposits and external spends."""
    net = _net(movement)
    if movement.spent and net != booked:
        refs = ", ".join(movement.spent)
        message = f"not one of our attempts, and it spends our UTxOs: {refs}. It moved {_text(net)}"
        return Difference("foreign", "utxos", next(iter(movement.spent)), tx.tx_id, message)
    if net == booked:
        return None
    ref = next(iter(movement.made), tx.tx_id)
    if booked:
        message = f"the chain brought {_text(net)}, the ledger booked {_text(booked)}"
        return Difference("differing", "utxos", ref, tx.tx_id, message)
    if tx.block_height >= booked_height:
        return InFlight(tx.tx_id, None, "a deposit that is booked once every provider has listed it", net)
    return Difference("foreign", "utxos", ref, tx.tx_id, f"a deposit of {_text(net)} that is not booked")


def _of_claim(
    claim: Claim, read: Read[TxSeen], tip: BlockSeen, since_slot: int, is_forked: bool
) -> Difference | InFlight | Doubt | None:
    """A transaction on chain by the ledger that is not listed: gone, or older or newer than the listing."""
    if isinstance(read, NotFound):
        return _not_there(claim, tip, is_forked)
    if not isinstance(read, Found):
        return Doubt(f"whether transaction {claim.tx_id} is on the chain ({read.reason})")
    if read.value.block_slot < since_slot:
        return None
    if read.value.block_height > tip.height:
        payment_id = claim.row if claim.table == "payments" else None
        return InFlight(
            claim.tx_id, payment_id, "in a block after the last one that was read", _less({}, claim.booked)
        )
    return Doubt(f"the provider shows transaction {claim.tx_id} and does not list it at the address")


def _not_there(claim: Claim, tip: BlockSeen, is_forked: bool) -> Difference | InFlight | Doubt:
    """A claim whose transaction is not on chain.

    An attempt that is not booked yet may leave its block and return. For a booked one, payagent may be unsure of a
    fork: until its next pass, until the chain is as high again, or until a missing deposit was denied often
    enough.
    """
    if claim.state is State.IN_BLOCK and not claim.booked:
        return InFlight(claim.tx_id, claim.row, "its block is no longer on the chain, and nothing is booked", {})
    if is_forked or claim.height > tip.height or claim.is_missing:
        return Doubt(
            f"whether transaction {claim.tx_id} should be on the chain: payagent is not sure of a fork yet"
        )
    message = f"the ledger has it on the chain with {_text(claim.booked)}, and it is not there"
    return Difference("missing", claim.table, claim.row, claim.tx_id, message)


def _standing(conn: Connection, history: History, gap: _Gap) -> Iterator[Told]:
    yield Progress("utxos", len(history.utxos))
    booked = onchain.owned(conn)
    chain = clean(add({LOVELACE: utxo.lovelace, **utxo.assets} for utxo in history.utxos))
    for asset in sorted(booked.keys() | chain.keys() | clean(gap.explained).keys()):
        surplus, explained = chain.get(asset, 0) - booked.get(asset, 0), gap.explained.get(asset, 0)
        if surplus != explained:
            message = f"the chain has {surplus} more than the ledger; the lines above explain {explained} of that"
            yield Difference("differing", "balances", asset, None, message)
        yield AssetReconciliation(asset, booked.get(asset, 0), chain.get(asset, 0), gap.in_flight.get(asset, 0))


def _net(movement: Movement) -> Units:
    return _less(add(movement.made.values()), add(movement.spent.values()))


def _less(one: Units, other: Units) -> dict[str, int]:
    return clean(add((one, {asset: -units for asset, units in other.items()})))


def _text(units: Units) -> str:
    return ", ".join(f"{n} {asset}" for asset, n in units.items()) or "nothing"
