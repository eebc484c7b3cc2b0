"""Counts how often a run reached each event of interest, from the ledger's records and the chain.

Never: judges; changes what happens.
"""

import json
from collections.abc import Mapping
from typing import Any

from payagent.core.payment.machine import State
from payagent.core.problems import name_of
from payagent.store.db.unit import Connection
from payagent.store.rows.upkeep import UPKEEP_APP
from sim.network import DEEP, Net
from sim.providers import LIES, MISPLACES
from sim.trace import Trace

_EVENTS = """
SELECT e.seq, e.payment_id, e.event, e.state, e.detail, p.first_invoice_seq, p.void_tx_id, p.app_id, p.kind,
       v.dialect
FROM events e LEFT JOIN payments p ON p.id = e.payment_id LEFT JOIN invoices v ON v.seq = p.invoice_seq
WHERE e.seq > ? ORDER BY e.seq
"""
_MOVES = "SELECT seq, kind, payment_id, unexplained FROM prepaid_moves WHERE seq > ? ORDER BY seq"
_ATTEMPTS = "SELECT tx_id, kind, invoice_seq, inputs FROM attempts WHERE payment_id = ? ORDER BY rowid"
_SIMPLE = {
    "confirm": "a payment is confirmed",
    "settle": "a payment is settled",
    "invoiced_again": "a merchant's next invoice joins an open payment",
    "merchant_refused": "a merchant refuses a proof for good",
    "accepted_depth_learned": "the depth is learned at which a merchant accepts",
    "proof_refused_early": "a merchant is shown no early proof any more",
    "external_spend_lost": "what was spent elsewhere loses its block",
    "external_spend_again": "what was spent elsewhere is in another block",
    "deposit_rolled_back": "a payment spends a deposit that a fork took away",
    "deposit_restored": "a payment's deposit comes back",
}
_KEPT = {"split": "a coin is split that nobody ordered to be", "sweep": "crumbs are gathered"}
_IN_TOKENS = "a purchase for a token is in a block"
_IN_A_DIALECT = "a purchase by {} is in a block"
_SPOKEN = ("t-backend", "flux", "x402-v1", "x402-v2")
"""The dialects of the simulated merchants (`sim.scenarios.draw_dialects`)."""
_ASKED = "a new ledger has asked the chain for the wallet's past"
_CAUGHT_UP = "a ledger that was behind has caught up"
_JOBS = (
    "admit", "deposit", "sign", "leave", "answer", "observe", "confirm", "settle", "void", "cancel", "replace",
    "use",
)  # fmt: skip
LISTED = (
    *_SIMPLE.values(),
    _KEPT["split"],
    *(f"a death {when} {job}" for when in ("before", "after") for job in _JOBS),
    *(f"no room or no disk at {job}" for job in _JOBS),
    _CAUGHT_UP,
    _IN_TOKENS,
    *map(_IN_A_DIALECT.format, _SPOKEN),
    "a cancel loses its race",
    "a confirmed payment is reopened",
    "a daemon leaves its ledger to another",
    "a death between two steps",
    "a facilitator loses what it was handed",
    "a facilitator sends late what it was handed",
    "a fork of 16 blocks or more",
    "a ledger is put back that lacks what was sent",
    "a mempool drops a transaction",
    "a merchant refuses an early proof",
    "a merchant sends what it refused",
    "a merchant was handed a transaction and never sent it",
    "a ledger is searched for secrets",
    "a next invoice is paid with the same nonce UTxO",
    "a payment is void: its nonce UTxO was spent elsewhere",
    "a payment is void: its cancel won",
    "a payment is void: its deposit vanished, and its time is over",
    "a payment is void: its parent went by another transaction",
    "a payment spends change that is in no block",
    "a payment's block is lost, 16 deep or more",
    "a prepaid call is used",
    "a proof is served that was refused early",
    "a provider is asked that is on an orphaned branch",
    "an index of our address cannot deny a transaction",
    "one machine of many is behind and denies",
    *(f"a provider lies: {lie}" for lie in (*LIES, MISPLACES)),
    "an alert: payment_reopened",
    "a provider names another id",
    "a provider says yes and drops it",
    "a reply was lost of what was taken",
    "a second daemon is refused: already_running",
    "a stranger sends a coin with a datum",
    "a stranger sends tokens that nobody wants",
    "a submission taken late",
    "a top-up ends: done",
    "a transaction lands on a fork after its time limit",
    "a transaction lands whose reply was lost",
    "a void is reopened",
    "all inputs are spent, and it is not ours",
    "all inputs are spent, and it is ours",
    "an attempt is replaced for its next invoice",
    "an attempt is replaced for the same invoice",
    "an attempt lands that had been replaced",
    "a person is asked",
    "a person says yes or no: approve",
    "a person says yes or no: deny",
    "an operator stops all signing",
    "another program spends a payment's nonce UTxO",
    "clients of one purchase ask at once",
    "clients of several purchases ask at once",
    "coins are taken back by an operator",
    "coins are taken back by the agent",
    "the books that a death left are verified",
    "the clock jumps",
    "two providers disagree about a transaction",
    "what was never broadcast is taken back",
)
"""Events that a campaign should reach. Events that were not reached are reported as zero, so that gaps show."""


class Coverage:
    """The coverage of one run, updated after each commit."""

    def __init__(self, net: Net, story: Trace) -> None:
        self._net = net
        self._story = story
        self._last_event = self._last_move = 0
        self._states: dict[str, str] = {}
        self.payments: dict[str, None] = {}
        self.landed: dict[str, None] = {}

    def reborn(self, conn: Connection) -> None:
        """Start again from the ledger's last rows, because a death may have removed rows that were seen."""
        (event,) = conn.execute("SELECT COALESCE(MAX(seq), 0) FROM events").fetchone()
        (move,) = conn.execute("SELECT COALESCE(MAX(seq), 0) FROM prepaid_moves").fetchone()
        self._last_event, self._last_move = min(self._last_event, event), min(self._last_move, move)

    def committed(self, conn: Connection) -> None:
        for seq, payment_id, event, state, detail, first, void_tx_id, app_id, kind, dialect in conn.execute(
            _EVENTS, (self._last_event,)
        ).fetchall():
            self._last_event = seq
            facts = json.loads(detail)
            if event == "alert":
                self._story.reach(f"an alert: {facts['kind']}")
            elif event == "topup_ended":
                self._story.reach(f"a top-up ends: {name_of(facts['code'], facts['reason']) or 'done'}")
            elif event == "caught_up":
                self._story.reach(_ASKED if facts["signed"] is None else _CAUGHT_UP)
            elif event == "delivery_give_up":  # rare: clients here retry until they are served
                self._story.reach("a merchant is given up: paid, and not served in time")
            elif event == "reserve" and app_id == UPKEEP_APP:
                self._story.reach(_KEPT[kind])
            elif event in _SIMPLE:
                self._story.reach(_SIMPLE[event])
            if payment_id is not None and state is not None:
                facts |= {"first": first, "void_tx_id": void_tx_id, "dialect": dialect}
                self._of_payment(conn, payment_id, event, facts)
                self._states[payment_id] = state
        for seq, kind, payment_id, unexplained in conn.execute(_MOVES, (self._last_move,)).fetchall():
            self._last_move = seq
            self._of_pool(kind, payment_id, unexplained)

    def at_rest(self) -> None:
        """Count runs that tested nothing: without a payment, or without one on the chain."""
        if not self.payments:
            self._story.reach("a run without a payment")
        elif not self.landed:
            self._story.reach("a run without a payment that landed")

    def _of_payment(self, conn: Connection, payment_id: str, event: str, facts: Mapping[str, Any]) -> None:
        before = self._states.get(payment_id)
        match event:
            case "reserve":
                self.payments[payment_id] = None
                self._story.reach("a payment is admitted")
            case "replace":
                again = "for its next invoice" if "invoice_seq" in facts else "for the same invoice"
                self._story.reach(f"an attempt is replaced {again}")
            case "sign":
                self._signed(conn, payment_id)
            case "cancel":
                by = "by an operator" if "by" in facts else "by the agent"
                self._story.reach(f"coins are taken back {by}")
            case "seen_in_block":
                self._landed(conn, payment_id, str(facts["tx_id"]), facts["first"], before)
                if facts["dialect"] is not None:
                    self._bought(str(facts["tx_id"]), facts["dialect"])
            case "block_lost":
                self._lost(str(facts["block"]), before)
            case "void":
                self._void(conn, payment_id, facts)

    def _signed(self, conn: Connection, payment_id: str) -> None:
        """A parent that is in no block now is a transaction that payagent sent itself."""
        *_, (_, _, _, inputs) = conn.execute(_ATTEMPTS, (payment_id,)).fetchall()
        parents = [self._net.chain.tx(ref.partition("#")[0]) for ref in inputs.split()]
        if any(parent is None or parent[1] is None for parent in parents):
            self._story.reach("a payment spends change that is in no block")

    def _landed(self, conn: Connection, payment_id: str, tx_id: str, first: int, before: str | None) -> None:
        self.landed[payment_id] = None
        self._story.reach("an attempt that pays is in a block")
        attempts = conn.execute(_ATTEMPTS, (payment_id,)).fetchall()
        later = [kind for _, kind, _, _ in attempts[[row[0] for row in attempts].index(tx_id) + 1 :]]
        if "pay" in later or (before == State.REPLACING and not later):
            self._story.reach("an attempt lands that had been replaced")
        if "cancel" in later:
            self._story.reach("a cancel loses its race")
        if any(row[0] == tx_id and row[2] != first for row in attempts):
            self._story.reach("a next invoice is paid with the same nonce UTxO")

    def _bought(self, tx_id: str, dialect: str) -> None:
        self._story.reach(_IN_A_DIALECT.format(dialect))
        tx = self._net.hoard.get(tx_id)
        if tx is not None and tx.outputs[0].assets:
            self._story.reach(_IN_TOKENS)

    def _lost(self, block: str, before: str | None) -> None:
        depth = self._net.orphans.get(block, 0)
        ended_as = {State.CONFIRMED: "a confirmed payment", State.VOID: "a void"}.get(State(before or "in_block"))
        if ended_as is not None:
            self._story.reach(f"{ended_as} is reopened")
        if depth >= DEEP:
            self._story.reach("a payment's block is lost, 16 deep or more")
        elif depth:
            self._story.reach("a payment's block is lost")
        else:
            self._story.reach("a payment's block is thought lost, and is there")

    def _void(self, conn: Connection, payment_id: str, facts: Mapping[str, Any]) -> None:
        if facts.get("code") == "external_spend":
            self._story.reach("a payment is void: its nonce UTxO was spent elsewhere")
        elif facts.get("time_over"):
            self._story.reach("a payment is void: its deposit vanished, and its time is over")
        elif facts["void_tx_id"] is not None:
            self._story.reach("a payment is void: its parent went by another transaction")
        else:
            self._story.reach("a payment is void: its cancel won")
            pays = [tx_id for tx_id, kind, _, _ in conn.execute(_ATTEMPTS, (payment_id,)) if kind == "pay"]
            if any(tx_id not in self._net.taken for tx_id in pays):
                self._story.reach("what was never broadcast is taken back")

    def _of_pool(self, kind: str, payment_id: str | None, unexplained: int) -> None:
        if kind == "use":
            self._story.reach("a prepaid call is used" if payment_id is None else "a batch's first call is used")
        else:
            self._story.reach("a balance is bought" if kind == "buy" else "a balance is taken back with its block")
        if unexplained > 0:
            self._story.reach("a call is served that nothing was bought for")
