"""Invariants checked from outside: the ledger file, the devnet's chain, the merchant's books.

`at_death` checks a copy of a dead daemon's files; `at_peace` checks when nothing is in flight any more. Both add
what they find to the world's `violations`.
"""

import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from killworld import APP_TOKEN, PASSPHRASE, WAITING, Lane, World

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.devnet.ledger import Tx, TxOut, decode_tx
from payagent.devnet.merchant import role_address
from payagent.devnet.server import Devnet

Amounts = Counter[str]
Attempt = tuple[str, str, str, bytes, int]


@dataclass(frozen=True)
class Books:
    """The contents of a ledger file. `attempts` by tx id: payment, nonce UTxO, inputs, bytes, fee."""

    attempts: dict[str, Attempt]
    payments: dict[str, tuple[str, str | None, str]]
    accounts: dict[tuple[str, str], int]
    utxos: frozenset[str]
    faults: tuple[str, ...]


def read_books(path: Path) -> Books:
    conn = sqlite3.connect(path)
    try:
        ask = conn.execute
        attempts = {
            r[0]: tuple(r[1:])
            for r in ask("SELECT tx_id, payment_id, nonce_utxo, inputs, cbor, fee_lovelace FROM attempts")
        }
        payments = {r[0]: tuple(r[1:]) for r in ask("SELECT id, state, tx_id, kind FROM payments")}
        accounts = {
            (r[0], r[1]): r[2] for r in ask("SELECT account, asset, SUM(units) FROM postings GROUP BY 1, 2")
        }
        utxos = frozenset(r[0] for r in ask("SELECT ref FROM utxos WHERE state = 'available'"))
        faults = [f"integrity {r}" for r in ask("PRAGMA integrity_check") if r != ("ok",)]
        faults += [f"foreign key {r}" for r in ask("PRAGMA foreign_key_check")]
        unbalanced = "SELECT entry_id, asset, SUM(units) FROM postings GROUP BY 1, 2 HAVING SUM(units) <> 0"
        faults += [f"unbalanced entry {r}" for r in ask(unbalanced)]
        orphans = "SELECT p.entry_id FROM postings p LEFT JOIN entries j ON j.id = p.entry_id WHERE j.id IS NULL"
        faults += [f"postings without entry {r}" for r in ask(orphans)]
        return Books(attempts, payments, accounts, utxos, tuple(faults))
    finally:
        conn.close()


def copy_of_dead(lane: Lane) -> Path:
    """A copy of the files as the kill left them, so that only the daemon recovers the originals."""
    folder = lane.world.dir / f"{lane.dir.name}-dead"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in lane.dir.glob("ledger.db*"):
        if not path.name.endswith("-shm"):
            shutil.copy(path, folder)
    return folder / "ledger.db"


@dataclass(frozen=True)
class Sight:
    """The chain at one moment: transactions in blocks, other submissions, and the UTxOs at our address."""

    blocks: tuple[Tx, ...]
    sent: tuple[Tx, ...]
    utxos: frozenset[str]
    holds: Amounts


def look(lane: Lane) -> Sight:
    own = own_raw(lane)

    def inside(devnet: Devnet) -> Sight:
        chain = devnet.chain
        blocks = tuple(tx for block in chain.blocks for tx in block.txs)
        held = tuple(decode_tx(raw) for _, raw in devnet.node.held)
        unspent = chain.utxos_at(own)
        utxos = frozenset(f"{ref[0]}#{ref[1]}" for ref, _ in unspent)
        holds = sum_up(out for _, out in unspent)
        return Sight(ours(lane, blocks), ours(lane, (*blocks, *chain.mempool.values(), *held)), utxos, holds)

    return lane.world.devnet.run(inside)


def own_raw(lane: Lane) -> bytes:
    return parse_address(lane.address, NETWORKS["devnet"]).raw


def ours(lane: Lane, txs: Iterable[Tx]) -> tuple[Tx, ...]:
    """The transactions signed with the lane's key."""
    key_hash = own_raw(lane)[1:29]
    return tuple(
        tx for tx in txs if any(blake2b(key, digest_size=28).digest() == key_hash for key, _ in tx.witnesses)
    )


def sum_up(outputs: Iterable[TxOut]) -> Amounts:
    total: Amounts = Counter()
    for out in outputs:
        total.update({"lovelace": out.lovelace, **out.assets})
    return total


def at_death(lane: Lane) -> None:
    """The ledger of a killed daemon must already hold everything that was answered or submitted."""
    books = read_books(copy_of_dead(lane))
    check_books(lane, books)
    sight = look(lane)
    check_sent(lane, books, sight)
    for asset, units in sight.holds.items():
        # every available UTxO of the ledger is on the chain, whatever held payments did
        if books.accounts.get(("wallet", asset), 0) > units:
            lane.world.violate("ledger above chain", f"{lane.dir.name} {asset} {units}")


def check_books(lane: Lane, books: Books) -> None:
    world = lane.world
    for fault in books.faults:
        world.violate("file", f"{lane.dir.name} {fault}")
    for tx_id, known in lane.attempts.items():
        if books.attempts.get(tx_id) != known:
            world.violate("attempt changed", f"{lane.dir.name} {tx_id}")
    lane.attempts.update(books.attempts)
    for purchase in lane.purchases:
        if purchase.payment_id is None:
            continue
        attempt = books.attempts.get(purchase.tx_hash or "")
        if purchase.payment_id not in books.payments:
            world.violate("payment lost", f"{purchase.key} {purchase.payment_id} was acknowledged")
        elif attempt is None or attempt[0] != purchase.payment_id:
            world.violate("told before durable", f"{purchase.key} {purchase.tx_hash}")


def check_sent(lane: Lane, books: Books, sight: Sight) -> None:
    for tx in sight.sent:
        if tx.tx_id not in books.attempts:
            lane.world.violate("left before durable", f"{lane.dir.name} {tx.tx_id}")


async def at_peace(world: World) -> None:
    """Everything is confirmed and nothing is in flight: books, chain and merchant must agree."""
    for lane in world.lanes:
        books = read_books(lane.dir / "ledger.db")
        check_books(lane, books)
        sight = look(lane)
        check_sent(lane, books, sight)
        check_attempts(lane, books)
        check_ledger(lane, books, sight)
        check_payments(lane, books)
        check_log(lane)
    check_paid_once(world)
    await check_merchant(world)


def check_attempts(lane: Lane, books: Books) -> None:
    """Every attempt spends the payment's nonce UTxO, so no two of a payment can both land."""
    nonce_utxos: dict[str, set[str]] = {}
    for tx_id, (payment_id, nonce_utxo, inputs, cbor, fee) in books.attempts.items():
        tx = decode_tx(cbor)
        spends = {f"{ref[0]}#{ref[1]}" for ref in tx.inputs}
        if (
            tx.tx_id != tx_id
            or spends != set(inputs.split(" "))
            or tx.fee_lovelace != fee
            or nonce_utxo not in spends
        ):
            lane.world.violate("attempt", f"{lane.dir.name} {tx_id} is not what its row says")
        nonce_utxos.setdefault(payment_id, set()).add(nonce_utxo)
    for payment_id, several in nonce_utxos.items():
        if len(several) != 1:
            lane.world.violate("nonce UTxO", f"{lane.dir.name} {payment_id} has {several}")


def check_ledger(lane: Lane, books: Books, sight: Sight) -> None:
    own = own_raw(lane)
    elsewhere = sum_up(out for tx in sight.blocks for out in tx.outputs if out.address != own)
    fees: Amounts = Counter({"lovelace": sum(tx.fee_lovelace for tx in sight.blocks)})
    for account, expected in (
        ("wallet", sight.holds),
        ("held", Counter()),
        ("fees", fees),
        (f"merchant:{lane.world.devnet.merchant_url}", elsewhere),
    ):
        booked = Counter({asset: units for (name, asset), units in books.accounts.items() if name == account})
        if booked != expected:
            lane.world.violate(
                "ledger differs", f"{lane.dir.name} {account}: {+booked} booked, {+expected} on chain"
            )
    if books.utxos != sight.utxos:
        lane.world.violate("coins differ", f"{lane.dir.name}: {sorted(books.utxos ^ sight.utxos)[:4]}")


def check_payments(lane: Lane, books: Books) -> None:
    """One ended payment per purchase; all other payments were never signed."""
    states = Counter(state for state, _, _ in books.payments.values())
    rejected = states.pop("rejected", 0)
    lane.world.rejected += rejected
    paid = sum(states.values())
    if set(states) - {"confirmed", "settled"} or paid != len(lane.purchases):
        lane.world.violate("payments", f"{lane.dir.name}: {dict(states)} for {len(lane.purchases)} purchases")
    if len(books.attempts) != paid:
        lane.world.violate("payments", f"{lane.dir.name}: {len(books.attempts)} attempts for {paid} payments")


def check_log(lane: Lane) -> None:
    log = lane.log.read_text()
    for secret in (PASSPHRASE, APP_TOKEN, lane.words):
        if secret in log:
            lane.world.violate("secret in log", lane.log.name)


def check_paid_once(world: World) -> None:
    """By the chain alone: the units of each purchase went to payTo once, and nothing else did."""
    pay_to = role_address("pay_to").raw
    txs = world.devnet.run(lambda devnet: [tx for block in devnet.chain.blocks for tx in block.txs])
    paid: dict[tuple[str, int], list[str]] = {}
    for tx in txs:
        for out in tx.outputs:
            if out.address == pay_to:
                asset, units = next(iter(out.assets.items()), ("lovelace", out.lovelace))
                paid.setdefault((asset, units), []).append(tx.tx_id)
    for lane in world.lanes:
        for purchase in lane.purchases:
            by = paid.pop((purchase.goods.asset, purchase.goods.pay_to_units), [])
            if len(by) > 1:
                world.violate("paid twice", f"{purchase.key} by {by}")
            elif not by:
                world.violate("payment lost", f"{purchase.key} {purchase.payment_id} is not on the chain")
            elif by != [purchase.tx_hash]:
                world.violate("other transaction", f"{purchase.key} was told {purchase.tx_hash}, paid by {by}")
    for what, by in paid.items():
        world.violate("paid for nothing", f"{what} by {by}")


async def check_merchant(world: World) -> None:
    state = (await world.http.get(f"{world.devnet.merchant_url}/merchant/state")).json()
    books = {row["txHash"] for row in (*state["payments"], *state["x402"]["payments"])}
    served = state["served"] + state["x402"]["served"]
    told = {purchase.tx_hash for lane in world.lanes for purchase in lane.purchases if purchase.served}
    wanted = sum(len(lane.purchases) for lane in world.lanes)
    if books != told or len(told) != wanted or served != wanted:
        world.violate("served", f"{wanted} purchases, {len(told)} served, {served} by the merchant's books")
    for refused in (state["refused"], state["x402"]["refused"]):
        if refused.keys() - WAITING:
            world.violate("merchant refused", str(refused))
