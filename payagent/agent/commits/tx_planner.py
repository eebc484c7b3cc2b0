"""Transactions of the wallet's coins: what a payment, a transfer or a cancel would be now.

May import: core, dialects, chain.provider, store.rows, wallet, agent.base, agent.commits. Never: takes a coin;
asks what may be paid.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.commits.replacement import parameters_of, require_nonce_utxo
from payagent.chain.provider import Tip
from payagent.core import ledger
from payagent.core.address import Address
from payagent.core.invoice import Invoice
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment import State
from payagent.core.problems import Refused, own_order
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store.db.unit import Unit
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import pauses, payments
from payagent.store.rows.payments import PaymentRow
from payagent.wallet.transaction import TxPlan, build, select, smallest_of
from payagent.wallet.utxo_index import Utxo, UtxoIndex

TransferPlan = Callable[[UtxoIndex, int, Utxo | None], TxPlan]
"""Makes the transaction of some coins, for a TTL; it spends the anchor, when there is one."""

MANY = 16
"""With more change on its way than this, one coin of it is tried by itself before all are weighed together."""


@dataclass(slots=True)
class Planner:
    """Our free coins, which the writer's thread owns, and the chain.

    Change in no block yet is spent through `chain_depth` transactions, of such as can land for `chain_ttl_s` more.
    """

    utxos: UtxoIndex
    chain: ChainView
    own: Address
    unconfirmed_ancestors: int = 0
    chain_ttl_s: int = 0
    _depths: dict[str, int] = field(default_factory=dict)
    _depths_at: Tip | None = None
    _next: list[str] = field(default_factory=list)

    def plan(
        self,
        unit: Unit,
        invoice: Invoice,
        expires_at_ms: int | None,
        min_window_s: int,
        now_ms: int,
        nonce_utxo: Utxo | None = None,
        *,
        waits: bool = False,
    ) -> TxPlan:
        """The transaction that would pay the invoice now; raises what stands against it but for limits.

        `waits`: what is asked is what it would be once all change is there. That transaction is never signed.
        """
        slot = self.chain.require_ready(now_ms)
        ttl_slot = self.chain.ttl_slot(
            slot, expires_at_ms, min_window_s, from_block=invoice.dialect in TIMED_BY_BLOCK
        )
        parameters = parameters_of(invoice.proof, invoice.echo)

        def pay(utxos: UtxoIndex) -> TxPlan:
            return select(
                utxos,
                invoice.outputs,
                change=self.own,
                ttl_slot=ttl_slot,
                network_id=self.chain.network.network_id,
                params=parameters,
                nonce_utxo=nonce_utxo,
                commitment=None if invoice.commitment is None else bytes.fromhex(invoice.commitment),
            )

        try:
            if invoice.handed_over:
                return self._plan_with(unit, self._cancellable(pay), slot, 0, waits=waits)
            return self._plan_with(unit, pay, slot, self.unconfirmed_ancestors, by_one=True, waits=waits)
        except Refused as refusal:
            if invoice.proof == "tx_hash" or refusal.code not in ("needs_consolidation", "transaction_too_big"):
                raise
            raise Refused(
                "proof_too_big", f"{refusal.detail}, of at most {parameters.max_tx_size} bytes"
            ) from None

    def transfer(self, unit: Unit, plan: TransferPlan, nonce_utxo: Utxo | None, now_ms: int) -> TxPlan:
        """The operator's own order, of what is there and what is on its way."""
        slot = self.chain.require_ready(now_ms)
        ttl_slot = self.chain.ttl_slot(slot, None, 0)
        with own_order():
            return self._plan_with(
                unit, lambda utxos: plan(utxos, ttl_slot, nonce_utxo), slot, self.unconfirmed_ancestors
            )

    def cancel(self, unit: Unit, row: PaymentRow, ttl_slot: int) -> TxPlan:
        """The cancel: all coins of a payment that are there, its anchor in any case, to ourselves.

        Not what is yet to come: it may never, and would keep the cancel from landing. With a free one too where
        they do not pay for it. Refused: `anchor_gone`.
        """
        pauses.require_running(unit.conn)
        require_nonce_utxo(unit.conn, row)
        reserved = queries.utxos_reserved_for(unit.conn, row.id)
        there = [utxo_of(utxo) for utxo in reserved if utxo.state == "free" or utxo.ref == row.nonce_utxo]
        nonce_utxo = next(utxo for utxo in there if utxo.ref == row.nonce_utxo)
        network_id = self.chain.network.network_id
        try:
            return take_back(there, nonce_utxo, self.own, ttl_slot, network_id)
        except Refused:
            spent = {utxo.ref for utxo in there}
            for more in self.utxos.largest():
                if more.ref not in spent:
                    return take_back([*there, more], nonce_utxo, self.own, ttl_slot, network_id)
            raise

    def _cancellable(self, pay: Callable[[UtxoIndex], TxPlan]) -> Callable[[UtxoIndex], TxPlan]:
        """As `pay`, of coins that also pay for their own way back: what is handed over may have to be cancelled.

        Coins that fit the outputs to the unit do not where the wallet's own output needs more ADA than theirs.
        """

        def planned(utxos: UtxoIndex) -> TxPlan:
            plan = pay(utxos)
            try:
                take_back(plan.inputs, plan.nonce_utxo, self.own, plan.ttl_slot, plan.network_id)
            except Refused:
                spent = {utxo.ref for utxo in plan.inputs}
                plan = pay(UtxoIndex(utxo for utxo in utxos if utxo.ref not in spent))
                take_back(plan.inputs, plan.nonce_utxo, self.own, plan.ttl_slot, plan.network_id)
            return plan

        return planned

    def chainable(self, unit: Unit, slot: int) -> list[tuple[Utxo, int]]:
        """Change in no block yet that may be spent, each with how many transactions in none led to it."""
        if not self.unconfirmed_ancestors:
            return []
        depths = self._known_depths()
        found = (
            (utxo_of(row), queries.unconfirmed_ancestors(unit.conn, row.tx_id, depths))
            for row in queries.chainable_utxos(unit.conn, slot + self.chain_ttl_s)
        )
        return [(utxo, depth) for utxo, depth in found if depth < self.unconfirmed_ancestors]

    def depth_of(self, tx_id: str) -> int:
        """How many transactions in no block lead to one that was planned lately."""
        return self._depths.get(tx_id, 0)

    def totals_with_change(self, unit: Unit, now_ms: int) -> Mapping[str, int]:
        """Units per asset that are free, or will be once all change is there."""
        coming = _coming(unit, self.chain.require_ready(now_ms))
        return ledger.add((self.utxos.totals, UtxoIndex(coming).totals))

    def _known_depths(self) -> dict[str, int]:
        """What was found since the newest block came. One that is wrong for a while makes a chain no less safe."""
        if self._depths_at != self.chain.tip:
            self._depths_at, self._depths = self.chain.tip, {}
        return self._depths

    def _plan_with(
        self,
        unit: Unit,
        plan: Callable[[UtxoIndex], TxPlan],
        slot: int,
        unconfirmed_ancestors: int,
        *,
        by_one: bool = False,
        waits: bool = False,
    ) -> TxPlan:
        """What `plan` makes of the free coins, or of those and change that is on its way, `chain_depth` deep.

        Where they do not suffice although the wallet has more coins, the refusal says why.
        """
        try:
            return plan(self.utxos)
        except Refused as refusal:
            if refusal.code not in ("not_enough_funds", "needs_consolidation"):
                raise
            if unconfirmed_ancestors and (chained := self._chained(unit, plan, slot, by_one=by_one)):
                return chained
            if missing := queries.missing_utxos(unit.conn):
                raise Refused(
                    "chain_not_ready",
                    f"the provider does not list {len(missing)} of the wallet's coins: {refusal.detail}",
                ) from None
            coming = _coming(unit, slot)
            whole = _planned(plan, UtxoIndex([*self.utxos, *coming]))
            if whole is None:
                raise
            if waits:
                return whole
            asset = str(refusal.context.get("asset", LOVELACE))
            raise _in_flight(
                asset, self.utxos.totals.get(asset, 0), UtxoIndex(coming).totals.get(asset, 0)
            ) from None

    def _chained(
        self, unit: Unit, plan: Callable[[UtxoIndex], TxPlan], slot: int, *, by_one: bool
    ) -> TxPlan | None:
        """The transaction with change that is in no block yet; its anchor is in one, when any of its coins is."""
        made = self._chained_to_one(unit, plan, slot) if by_one else None
        if made is None:
            coming = [utxo for utxo, _ in self.chainable(unit, slot)]
            if not coming:
                return None
            try:
                made = plan(UtxoIndex([*self.utxos, *coming]))
            except Refused:
                return None
            by_lovelace = sorted(coming, key=lambda utxo: (utxo.lovelace, utxo.ref))
            self._next = [utxo.ref for utxo in by_lovelace] if len(coming) > MANY else []
        settled = [utxo for utxo in made.inputs if utxo.ref in self.utxos]
        if settled and made.nonce_utxo.ref not in self.utxos:
            made = made._replace(nonce_utxo=smallest_of(settled))
        parents = {utxo.tx_id for utxo in made.inputs if utxo.ref not in self.utxos}
        depths = self._known_depths()
        depths[made.tx_id] = 1 + max(
            (queries.unconfirmed_ancestors(unit.conn, parent, depths) for parent in parents), default=-1
        )
        return made

    def _chained_to_one(self, unit: Unit, plan: Callable[[UtxoIndex], TxPlan], slot: int) -> TxPlan | None:
        """The transaction with one coin: of those that were on their way when all were last weighed, the largest
        that can still be had.

        So a payment costs no more with very many such coins than with one.
        """
        while self._next:
            row = queries.chainable_utxo(unit.conn, self._next[-1], slot + self.chain_ttl_s)
            if row is not None:
                try:
                    return plan(UtxoIndex([utxo_of(row)]))
                except Refused:
                    return None
            self._next.pop()
        return None


def _coming(unit: Unit, slot: int) -> list[Utxo]:
    """Change that is on its way: of what is signed as planned, else what the coins hold above what is held."""
    coming = [utxo_of(row) for row in queries.coming_utxos(unit.conn, slot)]
    for row in payments.payments_in(unit.conn, (State.RESERVED,)):
        left = {asset: -units for asset, units in payments.hold(unit.conn, row.id).items()}
        for utxo in queries.utxos_reserved_for(unit.conn, row.id):
            left = ledger.add((left, {LOVELACE: utxo.lovelace, **utxo.assets}))
        lovelace = left.pop(LOVELACE, 0)
        if lovelace > 0 and (row.ttl_slot or 0) > slot:
            coming.append(
                Utxo(
                    f"{row.seq:064x}", 0, lovelace, tuple((asset, units) for asset, units in left.items() if units)
                )
            )
    return coming


def _planned(plan: Callable[[UtxoIndex], TxPlan], utxos: UtxoIndex) -> TxPlan | None:
    """The transaction of these coins; None where they do not suffice."""
    try:
        return plan(utxos)
    except Refused:
        return None


def _in_flight(asset: str, available: int, coming: int) -> Refused:
    return Refused(
        "funds_in_flight",
        f"{format_amount(asset, available)} are free, and {format_amount(asset, coming)} more come back as change "
        "of transactions that are in no block yet; together they suffice",
        asset=asset,
        available=str(available),
        coming=str(coming),
    )


def take_back(inputs: Sequence[Utxo], nonce_utxo: Utxo, own: Address, ttl_slot: int, network_id: int) -> TxPlan:
    """The cancel: all of a payment's coins to ourselves. Refused when they do not pay for it."""
    return build(inputs, nonce_utxo, (), change=own, ttl_slot=ttl_slot, network_id=network_id)
