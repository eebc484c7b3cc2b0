"""Plans transactions of the wallet's UTxOs: of a payment, a transfer or a cancel.

Never: reserves a UTxO; checks limits.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.commits.replacement import parameters_of, require_nonce_utxo
from payagent.chain.provider import BlockSeen
from payagent.core import ledger
from payagent.core.address import Address
from payagent.core.aggregate import PaymentRow
from payagent.core.invoice import Invoice
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment.machine import State
from payagent.core.problems import Refused, own_order
from payagent.dialects import TIMED_BY_BLOCK
from payagent.store.db.unit import Unit
from payagent.store.rows import attempts_and_utxos, pauses, payments
from payagent.wallet.transaction import TxPlan, build, select, smallest_of
from payagent.wallet.utxo_index import Utxo, UtxoIndex

TransferPlan = Callable[[UtxoIndex, int, Utxo | None], TxPlan]
"""Plans a transaction from UTxOs and a TTL. It spends the given nonce UTxO, if there is one."""

MANY = 16
"""With more pending UTxOs than this, one of them is tried alone before all of them together."""


@dataclass(slots=True)
class Planner:
    """Plans from the available UTxOs, which the writer's thread owns, and from pending change.

    Pending change may have up to `unconfirmed_ancestors` transactions behind it, each with a TTL at least
    `chain_ttl_s` seconds ahead.
    """

    utxos: UtxoIndex
    chain: ChainView
    own: Address
    unconfirmed_ancestors: int = 0
    chain_ttl_s: int = 0
    account: int = 0
    _ancestor_counts: dict[str, int] = field(default_factory=dict)
    _counts_tip: BlockSeen | None = None
    _candidates: list[str] = field(default_factory=list)

    def plan(
        self,
        unit: Unit,
        invoice: Invoice,
        expires_at_ms: int | None,
        min_window_s: int,
        now_ms: int,
        nonce_utxo: Utxo | None = None,
        *,
        with_pending: bool = False,
    ) -> TxPlan:
        """The transaction that pays the invoice now. Refused for every reason except limits.

        `with_pending`: plan as if all pending change were available. Such a plan is never signed.
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
            if invoice.merchant_submits:
                return self._plan_with(unit, self._cancellable(pay), slot, 0, with_pending=with_pending)
            return self._plan_with(
                unit, pay, slot, self.unconfirmed_ancestors, one_first=True, with_pending=with_pending
            )
        except Refused as refusal:
            if invoice.proof == "tx_hash" or refusal.code != "utxos_too_small":
                raise
            raise Refused(
                "utxos_too_small/header_size", f"{refusal.detail}, of at most {parameters.max_tx_size} bytes"
            ) from None

    def transfer(self, unit: Unit, plan: TransferPlan, nonce_utxo: Utxo | None, now_ms: int) -> TxPlan:
        """The transaction of a transfer, from available UTxOs and pending change."""
        slot = self.chain.require_ready(now_ms)
        ttl_slot = self.chain.ttl_slot(slot, None, 0)
        with own_order():
            return self._plan_with(
                unit, lambda utxos: plan(utxos, ttl_slot, nonce_utxo), slot, self.unconfirmed_ancestors
            )

    def cancel(self, unit: Unit, row: PaymentRow, ttl_slot: int) -> TxPlan:
        """The cancel: it returns the payment's existing UTxOs, and its nonce UTxO in any case, to the wallet.

        Pending ones are left out: they may never exist, and the cancel could not land. If the UTxOs do not pay for
        the cancel, an available one is added. Refused: `paused`, `deposit_rolled_back`.
        """
        pauses.require_running(unit.conn)
        require_nonce_utxo(unit.conn, row)
        reserved = attempts_and_utxos.utxos_reserved_for(unit.conn, row.id)
        existing = [utxo_of(utxo) for utxo in reserved if utxo.state == "available" or utxo.ref == row.nonce_utxo]
        nonce_utxo = next(utxo for utxo in existing if utxo.ref == row.nonce_utxo)
        network_id = self.chain.network.network_id
        try:
            return take_back(existing, nonce_utxo, self.own, ttl_slot, network_id)
        except Refused:
            used_refs = {utxo.ref for utxo in existing}
            for more in self.utxos.largest():
                if more.ref not in used_refs:
                    return take_back([*existing, more], nonce_utxo, self.own, ttl_slot, network_id)
            raise

    def _cancellable(self, pay: Callable[[UtxoIndex], TxPlan]) -> Callable[[UtxoIndex], TxPlan]:
        """As `pay`, with inputs that could also pay for a cancel, for payments that the merchant submits.

        Inputs that match the outputs exactly may not suffice: the cancel's output can need more min-ADA than they
        hold.
        """

        def planned(utxos: UtxoIndex) -> TxPlan:
            plan = pay(utxos)
            try:
                take_back(plan.inputs, plan.nonce_utxo, self.own, plan.ttl_slot, plan.network_id)
            except Refused:
                used_refs = {utxo.ref for utxo in plan.inputs}
                plan = pay(UtxoIndex(utxo for utxo in utxos if utxo.ref not in used_refs))
                take_back(plan.inputs, plan.nonce_utxo, self.own, plan.ttl_slot, plan.network_id)
            return plan

        return planned

    def chainable(self, unit: Unit, slot: int) -> list[tuple[Utxo, int]]:
        """Pending UTxOs that may be spent, each with its number of unconfirmed ancestors."""
        if not self.unconfirmed_ancestors:
            return []
        counts = self._current_counts()
        candidates = (
            (utxo_of(row), attempts_and_utxos.unconfirmed_ancestors(unit.conn, row.tx_id, counts))
            for row in attempts_and_utxos.chainable_utxos(unit.conn, slot + self.chain_ttl_s, self.account)
        )
        return [(utxo, count) for utxo, count in candidates if count < self.unconfirmed_ancestors]

    def depth_of(self, tx_id: str) -> int:
        """The number of unconfirmed ancestors of a transaction planned since the newest block."""
        return self._ancestor_counts.get(tx_id, 0)

    def totals_with_change(self, unit: Unit, now_ms: int) -> Mapping[str, int]:
        """Units per asset that are available, or will be once all change confirms."""
        pending = _pending_utxos(unit, self.chain.require_ready(now_ms), self.account)
        return ledger.add((self.utxos.totals, UtxoIndex(pending).totals))

    def _current_counts(self) -> dict[str, int]:
        """Ancestor counts found since the newest block. A count that is briefly wrong breaks no safety rule."""
        if self._counts_tip != self.chain.tip:
            self._counts_tip, self._ancestor_counts = self.chain.tip, {}
        return self._ancestor_counts

    def _plan_with(
        self,
        unit: Unit,
        plan: Callable[[UtxoIndex], TxPlan],
        slot: int,
        unconfirmed_ancestors: int,
        *,
        one_first: bool = False,
        with_pending: bool = False,
    ) -> TxPlan:
        """Plan from the available UTxOs, or from those and pending change with few enough ancestors.

        If they do not suffice although the wallet has more UTxOs, the refusal says why.
        """
        try:
            return plan(self.utxos)
        except Refused as refusal:
            if refusal.name not in ("not_enough_funds", "utxos_too_small/inputs"):
                raise
            if unconfirmed_ancestors and (chained := self._chained(unit, plan, slot, one_first=one_first)):
                return chained
            if missing := attempts_and_utxos.missing_utxos(unit.conn, self.account):
                raise Refused(
                    "chain_not_ready",
                    f"the provider does not list {len(missing)} of the wallet's UTxOs: {refusal.detail}",
                ) from None
            pending = _pending_utxos(unit, slot, self.account)
            full_plan = _plan_or_none(plan, UtxoIndex([*self.utxos, *pending]))
            if full_plan is None:
                raise
            if with_pending:
                return full_plan
            asset = str(refusal.context.get("asset", LOVELACE))
            raise _funds_pending(
                asset, self.utxos.totals.get(asset, 0), UtxoIndex(pending).totals.get(asset, 0)
            ) from None

    def _chained(
        self, unit: Unit, plan: Callable[[UtxoIndex], TxPlan], slot: int, *, one_first: bool
    ) -> TxPlan | None:
        """A plan that spends pending change. Its nonce UTxO is a confirmed input, if it has one."""
        chosen = self._chained_to_one(unit, plan, slot) if one_first else None
        if chosen is None:
            pending = [utxo for utxo, _ in self.chainable(unit, slot)]
            if not pending:
                return None
            try:
                chosen = plan(UtxoIndex([*self.utxos, *pending]))
            except Refused:
                return None
            by_lovelace = sorted(pending, key=lambda utxo: (utxo.lovelace, utxo.ref))
            self._candidates = [utxo.ref for utxo in by_lovelace] if len(pending) > MANY else []
        confirmed = [utxo for utxo in chosen.inputs if utxo.ref in self.utxos]
        if confirmed and chosen.nonce_utxo.ref not in self.utxos:
            chosen = chosen._replace(nonce_utxo=smallest_of(confirmed))
        parents = {utxo.tx_id for utxo in chosen.inputs if utxo.ref not in self.utxos}
        counts = self._current_counts()
        counts[chosen.tx_id] = 1 + max(
            (attempts_and_utxos.unconfirmed_ancestors(unit.conn, parent, counts) for parent in parents), default=-1
        )
        return chosen

    def _chained_to_one(self, unit: Unit, plan: Callable[[UtxoIndex], TxPlan], slot: int) -> TxPlan | None:
        """A plan from one pending UTxO: the largest still available of those found when all were last compared.

        So planning costs the same with one pending UTxO and with very many.
        """
        while self._candidates:
            row = attempts_and_utxos.chainable_utxo(unit.conn, self._candidates[-1], slot + self.chain_ttl_s)
            if row is not None:
                try:
                    return plan(UtxoIndex([utxo_of(row)]))
                except Refused:
                    return None
            self._candidates.pop()
        return None


def _pending_utxos(unit: Unit, slot: int, account: int) -> list[Utxo]:
    """An account's pending change: of signed attempts as planned, of reserved payments UTxOs less the hold."""
    pending = [utxo_of(row) for row in attempts_and_utxos.coming_utxos(unit.conn, slot, account)]
    for row in payments.payments_in(unit.conn, (State.RESERVED,), account):
        left = {asset: -units for asset, units in payments.hold(unit.conn, row.id).items()}
        for utxo in attempts_and_utxos.utxos_reserved_for(unit.conn, row.id):
            left = ledger.add((left, {LOVELACE: utxo.lovelace, **utxo.assets}))
        lovelace = left.pop(LOVELACE, 0)
        if lovelace > 0 and (row.attempt.ttl_slot or 0) > slot:
            pending.append(
                Utxo(
                    f"{row.seq:064x}", 0, lovelace, tuple((asset, units) for asset, units in left.items() if units)
                )
            )
    return pending


def _plan_or_none(plan: Callable[[UtxoIndex], TxPlan], utxos: UtxoIndex) -> TxPlan | None:
    """The plan from these UTxOs; None if they do not suffice."""
    try:
        return plan(utxos)
    except Refused:
        return None


def _funds_pending(asset: str, available: int, pending: int) -> Refused:
    return Refused(
        "funds_pending",
        f"{format_amount(asset, available)} are available, and {format_amount(asset, pending)} are pending change "
        "in no block yet. Together they suffice",
        asset=asset,
        available=str(available),
        pending=str(pending),
    )


def take_back(inputs: Sequence[Utxo], nonce_utxo: Utxo, own: Address, ttl_slot: int, network_id: int) -> TxPlan:
    """The cancel: it returns these inputs to the wallet. Refused if they do not pay for it."""
    return build(inputs, nonce_utxo, (), change=own, ttl_slot=ttl_slot, network_id=network_id)
