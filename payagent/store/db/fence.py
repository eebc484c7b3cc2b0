"""The gate and the fence: the daemons of a fleet commit one after another, each only for accounts that it holds.

The gate is one row, which every commit locks first. It has the ends of the chains of events and of seals. The
fence is read after it, in a statement of its own: the accounts whose holder this daemon is. A lease's end tells
other daemons when they may take an account; only the fence says whether its holder may still write.

Never: takes or renews an account (store.rows.fleet).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from payagent.core.problems import Refused
from payagent.store.db.daemon_file import DaemonFile
from payagent.store.db.seals import last_seal
from payagent.store.db.signer_record import LastSigned, SignerRecord, is_forgotten
from payagent.store.db.unit import SELECT_HEADS, Connection, Unit

LEASE_MS = 10_000
"""A daemon that renewed within this time is living."""


@dataclass(slots=True)
class Seat:
    """One daemon's claims in a fleet."""

    holder: str  # the daemon's id, random and new with each start
    host: str  # its machine's name
    records: Mapping[int, SignerRecord]  # the signer's record for each account of the wallet
    # called on the writer's thread with each account that another daemon has taken, or that must be taken again
    on_lost: Callable[[int], None] = lambda _account: None
    is_synchronous: bool = False  # each commit is on a standby before it counts, so a failover loses none
    # the epoch of each account that this daemon holds; read it anywhere, but only jobs and the committer change it
    held: dict[int, int] = field(default_factory=dict)
    is_compared: bool = False  # whether the records were compared with the ledger over this connection
    # called in the first commit over each connection, before its jobs: it compares the records
    on_connect: Callable[[Unit], None] | None = None
    # number and hash of the ledger's last event, as this daemon's last commit left it
    last_event: tuple[int, str] = (0, "")
    behind_seq: int = 0  # the last event `ledger_behind` that it knows
    losses: int = 0  # grows when all accounts are lost at once
    own_file: DaemonFile = field(default_factory=DaemonFile)  # what this machine knows of its databases
    is_in_doubt: bool = False  # a COMMIT was sent, and its outcome is not known
    _timeline: int = 0
    _proven: frozenset[int] = frozenset()

    def hold(self, unit: Unit, epochs: Mapping[int, int]) -> None:
        """Hold the accounts that a job has just taken (`store.rows.fleet.take_accounts`)."""
        self._become(unit, {**self.held, **epochs})

    def let_go(self, unit: Unit, account: int) -> None:
        """Hold an account no more, after `store.rows.fleet.give_back`. `on_lost` is not called."""
        self._become(unit, {one: epoch for one, epoch in self.held.items() if one != account})

    def _become(self, unit: Unit, held: dict[int, int]) -> None:
        before, self.held = self.held, held

        def undo() -> None:
            self.held = before

        unit.undo(undo)

    def compare(self, unit: Unit) -> Iterator[tuple[int, LastSigned]]:
        """Compare the records with the ledger, once for each connection. Yields what the ledger has forgotten."""
        if self.is_compared:
            return
        for account, record in self.records.items():
            signed = record.read()
            if signed is not None and is_forgotten(unit.conn, signed, account):
                yield account, signed
        self.is_compared = True
        unit.undo(self._compare_again)

    def has_seen_more(self, unit: Unit) -> bool:
        """Whether the ledger lacks the last event that this daemon saw: somebody put an older one in its place."""
        seq, end = self.last_event
        found = unit.conn.execute("SELECT hash FROM events WHERE seq = ?", (seq,)).fetchone()
        return seq > 0 and found != (end,)

    def _compare_again(self) -> None:
        self.is_compared = False

    def is_proven(self, account: int) -> bool:
        """Whether the ledger has all that was signed for the account before the last failover, so it may sign.

        As of the last commit. False for an account that this daemon does not hold.
        """
        return account in self._proven and account in self.held

    def check(self, claims: "Mapping[int, AccountClaim]", timeline: int) -> None:
        """Compare what the daemon holds with what the fence says.

        An account whose row is as it was is held on, also over a new connection. A failover may have lost commits.
        """
        if timeline != self._timeline:
            self.begin_anew()
        self._timeline = timeline
        for account, epoch in tuple(self.held.items()):
            if account not in claims or claims[account].epoch != epoch:
                self._lose(account)
        self._proven = frozenset(one for one, claim in claims.items() if claim.proven_timeline == timeline)

    def note_lost_connection(self) -> None:
        """The connection was lost. All accounts are lost with it if the outcome of a commit is unknown.

        If not, what this daemon knows of them is what the ledger has. The next commit looks whether it still holds
        them.
        """
        self._compare_again()
        if self.is_in_doubt:
            self.begin_anew()

    def begin_anew(self) -> None:
        """Lose all accounts. Each must be taken again, and its payments be read again."""
        for account in tuple(self.held):
            self._lose(account)
        self.losses += 1  # last: a job that is made meanwhile belongs to the time before

    def _lose(self, account: int) -> None:
        self.held = {one: epoch for one, epoch in self.held.items() if one != account}
        self.on_lost(account)


@dataclass(frozen=True, slots=True)
class AccountClaim:
    """An account of which this daemon is the holder, as its row says. `noted`: as in the table `accounts`."""

    epoch: int
    proven_timeline: int | None
    noted: int


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate's row. `timeline`: of the database, as its last commit saw it; 0 in a file.

    `schema`: the newest migration of the tables. `is_synchronous`: whether commits wait for a standby now.
    """

    event_seq: int
    event_hash: str
    seal_seq: int
    seal_hash: str
    timeline: int
    schema: str
    is_synchronous: bool = True


SELECT_GATE = "SELECT event_seq, event_hash, seal_seq, seal_hash, timeline, schema FROM gate WHERE one = 1"


def make_gate(conn: Connection, schema: str, timeline: int) -> None:
    """Make the gate's row of a ledger that had one daemon until now. `schema`: its newest migration."""
    if conn.execute(SELECT_GATE).fetchone() is None:
        event_seq, event_hash, _ = conn.execute(f"SELECT {SELECT_HEADS}").fetchone()
        conn.execute(
            "INSERT INTO gate(one, event_seq, event_hash, seal_seq, seal_hash, timeline, schema) "
            "VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT (one) DO NOTHING",
            (event_seq, event_hash, *last_seal(conn), timeline, schema),
        )


def leave_gate(conn: Connection, gate: Gate) -> None:
    """Write the ends of both chains back. Every commit does: it also shows readers that there was one."""
    conn.execute(
        "UPDATE gate SET event_seq = ?, event_hash = ?, seal_seq = ?, seal_hash = ?, timeline = ? WHERE one = 1",
        (gate.event_seq, gate.event_hash, gate.seal_seq, gate.seal_hash, gate.timeline),
    )


def fail_over(conn: Connection, before: int, timeline: int, *, is_synchronous: bool) -> None:
    """The first commit since the database failed over: no account is proven, unless no commit can be lost."""
    conn.execute("UPDATE gate SET timeline = ? WHERE one = 1", (timeline,))
    if is_synchronous:
        conn.execute("UPDATE accounts SET proven_timeline = ? WHERE proven_timeline = ?", (timeline, before))


def claims_of(conn: Connection, holder: str) -> dict[int, AccountClaim]:
    """The fence: the accounts that a daemon holds. Ask after the gate, in this statement of its own."""
    rows = conn.execute("SELECT account, epoch, proven_timeline, noted FROM accounts WHERE holder = ?", (holder,))
    return {account: AccountClaim(epoch, timeline, noted) for account, epoch, timeline, noted in rows}


def publish_noted(conn: Connection, host: str, account: int, noted: int) -> None:
    """Tell the fleet that the host's signer record has the account's attempts up to this one.

    Other daemons present a proof only then.
    """
    conn.execute("UPDATE accounts SET noted = ?, last_signer = ? WHERE account = ?", (noted, host, account))


SIGNING = frozenset({"sign", "cancel", "promise", "voucher"})
"""The jobs that record signed bytes, or come before a voucher's signature. Each needs a proven account."""


def unproven(account: int) -> Refused:
    return Refused(
        "ledger_behind",
        f"the database may lack the last transaction of account {account}. Nothing is signed for it until the "
        "ledger has what each daemon signed, or the quiet time is over",
    )


def lease_lost(account: int) -> Refused:
    return Refused(
        "lease_lost",
        f"another daemon has taken over account {account}, or this one has to take it again. Nothing more is "
        "done for this request here. Send it again with the same key: what was committed is found",
    )
