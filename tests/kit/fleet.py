"""Daemons of a fleet as far as the store knows them: a committer with a seat, on a file or on PostgreSQL."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from payagent.audit.finding import AuditFinding
from payagent.audit.seals import check_seals
from payagent.store.db.committer import Checkpoint, Committer, Job
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.seals import last_seal
from payagent.store.db.signer_record import LastSigned
from payagent.store.db.unit import Unit
from payagent.store.rows import events, fleet, writes

T = TypeVar("T")

_PAYMENT = (
    "INSERT INTO apps(id, name, scopes, created_at_ms) VALUES ('app', 'app', 'pay', 1)",
    "INSERT INTO intents(id, app_id, idempotency_key, is_key_derived, fingerprint, origin, request_id, "
    "created_at_ms) VALUES ('int', 'app', 'k', 0, 'f', '', 'r', 1)",
    "INSERT INTO utxos(ref, tx_id, output_index, lovelace, assets, source, state, account) "
    "VALUES ('aa#0', 'aa', 0, 5, '{}', 'deposit', 'available', ?1)",
    "INSERT INTO payments(id, kind, app_id, intent_id, outputs, state, delivery, nonce_utxo, created_at_ms, "
    "updated_at_ms, account) "
    "VALUES ('pay', 'send', 'app', 'int', '[]', 'signed', 'not_presented', 'aa#0', 1, 1, ?1)",
    "INSERT INTO attempts(tx_id, payment_id, kind, nonce_utxo, inputs, cbor, fee_lovelace, ttl_slot, "
    "signed_at_ms, account) VALUES ('cc', 'pay', 'pay', 'aa#0', 'aa#0', ?2, 1, 100, 1, ?1)",
)


@dataclass
class Record:
    """A signer's record in memory."""

    last: LastSigned | None = None

    def read(self) -> LastSigned | None:
        return self.last

    def write(self, signed: LastSigned) -> None:
        self.last = signed


@dataclass
class Daemon:
    """One daemon's committer. Every call makes a commit of its own; times are by the test's clock."""

    name: str
    seat: Seat
    committer: Committer
    lost: list[int] = field(default_factory=list)

    @property
    def conn(self) -> Any:
        return self.committer.conn

    def run(self, job: Callable[[Unit], T], account: int | None = None) -> T:
        made = self.committer.job("job", job, account)
        self.committer.commit([made])
        result: T = made.outcome()
        return result

    def job(self, text: str, account: int | None) -> Job:
        return self.committer.job(
            text, lambda unit: writes.note(unit, None, "told", None, 1, {"text": text}), account
        )

    def note(self, text: str, account: int | None) -> None:
        job = self.job(text, account)
        self.committer.commit([job])
        job.outcome()

    def notes(self) -> list[str]:
        rows = self.conn.execute("SELECT detail ->> 'text' FROM events WHERE event = 'told' ORDER BY seq")
        return [text for (text,) in rows]

    def add_accounts(self) -> None:
        for account in (0, 1):
            self.run(lambda unit, account=account: fleet.add_account(unit, account, f"addr{account}"))  # type: ignore[misc]

    def taking(self, accounts: list[int], now_ms: int) -> Callable[[Unit], dict[int, int]]:
        def take(unit: Unit) -> dict[int, int]:
            taken = fleet.take_accounts(unit, self.name, accounts, now_ms)
            self.seat.hold(unit, taken)
            return taken

        return take

    def take(self, accounts: list[int], now_ms: int) -> dict[int, int]:
        return self.run(self.taking(accounts, now_ms))

    def end_leases(self) -> None:
        """Let every lease be over, without waiting for it."""
        self.run(lambda unit: unit.conn.execute("UPDATE accounts SET until_ms = 0"))

    def take_over(self, accounts: list[int]) -> dict[int, int]:
        """Take accounts from a daemon that did not renew."""
        self.end_leases()
        return self.take(accounts, 1)

    def renew(self, now_ms: int) -> None:
        self.run(lambda unit: fleet.renew(unit, self.name, sorted(self.seat.held), now_ms))

    def prove(self, account: int) -> None:
        self.run(lambda unit: fleet.prove(unit, self.name, account))

    def register(self, now_ms: int) -> None:
        row = fleet.DaemonRow(self.name, "host", "http://127.0.0.1", "0", "1", now_ms)
        self.run(lambda unit: fleet.register_daemon(unit, row))

    def give_back(self, account: int) -> None:
        def give(unit: Unit) -> None:
            fleet.give_back(unit, self.name, account)
            self.seat.let_go(unit, account)

        self.run(give)

    def signed(self, account: int) -> LastSigned | None:
        return self.seat.records[account].read()

    def attempt(self, account: int) -> None:
        """Sign the only attempt of a payment."""

        def sign(unit: Unit) -> None:
            for statement in _PAYMENT:
                unit.conn.execute(statement, (account, b"\x84")[: statement.count("?")])

        self.run(sign, account)

    def require_whole(self) -> None:
        """Both chains are whole, and the gate has their ends."""
        assert events.broken_event(self.conn) is None
        if isinstance(self.conn, sqlite3.Connection):
            assert [found for found in check_seals(self.conn, None) if isinstance(found, AuditFinding)] == []
        gate = self.conn.execute("SELECT event_seq, event_hash, seal_seq, seal_hash FROM gate").fetchone()
        assert gate == (*events.last_event(self.conn), *last_seal(self.conn))


@contextmanager
def daemon_on(
    place: Path | str,
    name: str,
    checkpoint: Checkpoint = lambda _name: None,
    made: Callable[..., Committer] | None = None,
) -> Iterator[Daemon]:
    """A daemon on a file, or on PostgreSQL by its URL. `made`: by another committer than the product's."""
    lost: list[int] = []
    seat = Seat(name, f"host of {name}", {0: Record(), 1: Record()}, lost.append)
    made = made or (Committer if isinstance(place, Path) else PostgresqlCommitter)
    committer = made(place, checkpoint=checkpoint, seat=seat)
    try:
        yield Daemon(name, seat, committer, lost)
    finally:
        committer.close()


@contextmanager
def pair_on(place: Path | str) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons on one ledger. The first holds both accounts of the wallet."""
    with daemon_on(place, "one") as one, daemon_on(place, "two") as two:
        one.add_accounts()
        assert one.take([0, 1], 0) == {0: 1, 1: 1}
        yield one, two
