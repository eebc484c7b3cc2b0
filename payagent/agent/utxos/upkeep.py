"""Decides and admits, in one commit, the transfers that payagent makes by itself to keep UTxOs ready.

Such a transfer has the same admission, state machine, ledger, pause, caps and signer as the operator's.
It pays nobody. The operator bounds its fees per 24 hours of the limits' clock.
Never: signs; waits; takes a UTxO that a payment has reserved.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import islice

from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.requests import AdmittedPayment, Ids, TransferRequest
from payagent.agent.pay.admission import Admission
from payagent.core import utxo_upkeep as upkeep
from payagent.core.payment.machine import AWAITING_SIGNATURE, ENDED_WITHOUT_PAYING, POSTED, State
from payagent.core.problems import Refused
from payagent.core.utxo_upkeep import Budget, Demand, Gather, Held, Split, demand_of
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, attempts_and_utxos, pauses
from payagent.store.rows import upkeep as store_upkeep
from payagent.store.rows.upkeep import UPKEEP_APP, UpkeepTxRow
from payagent.wallet.transaction import MAINNET_PARAMETERS, TxPlan, build, smallest_of, split_outputs
from payagent.wallet.utxo_index import Utxo, UtxoIndex

HELD_MAX = 300
"""How many available UTxOs are considered: this many of the largest and this many of the smallest."""

UNDER_WAY = frozenset(State).difference(ENDED_WITHOUT_PAYING, POSTED)


@dataclass(frozen=True, slots=True)
class UpkeepResult:
    """The transfer that upkeep admitted, if any, and how many payments could each take a UTxO before it."""

    admitted: AdmittedPayment | None
    room: int


@dataclass(frozen=True, slots=True)
class Means:
    """What the operator allows: lovelace for fees in 24 hours, and the assets that payments may be made of."""

    per_day_lovelace: int
    assets: Set[str]


@dataclass(frozen=True, slots=True)
class UtxoUpkeep:
    """Runs inside a write transaction, on the writer's thread."""

    admission: Admission

    def keep(self, unit: Unit, ids: Ids, means: Means, waiting: Sequence[int], now_ms: int) -> UpkeepResult:
        """Admit the move that `core.utxo_upkeep` decides on, for the payments that wait, or for later ones.

        `waiting`: what each waiting payment pays, in lovelace. Refused like any transfer: `paused`, and as
        `ChainView.require_ready` does.
        """
        pauses.require_running(unit.conn)
        slot = self.admission.planner.chain.require_ready(now_ms)
        transfers = store_upkeep.orders(unit.conn, upkeep.ORDERS_A_DAY)
        clock_ms = self.admission.rules.clock_ms(unit.conn, now_ms)
        held, utxos = self._held(unit, slot)
        demand = self._demand(unit, transfers, waiting, clock_ms, now_ms)
        room = upkeep.room(demand, held)
        if not self._may_start(transfers, clock_ms, is_burst=bool(waiting)):
            return UpkeepResult(None, room)
        spent = sum(transfer.fee_lovelace for transfer in _of_the_day(transfers, clock_ms))
        budget = Budget(means.per_day_lovelace - spent, MAINNET_PARAMETERS.min_fee_b, MAINNET_PARAMETERS.min_fee_a)
        move = upkeep.decide(demand, held, self._dust(means.assets) if demand.is_quiet else (), budget)
        return UpkeepResult(None if move is None else self._admit(unit, ids, move, utxos, now_ms), room)

    def _may_start(self, transfers: Sequence[UpkeepTxRow], clock_ms: int, *, is_burst: bool) -> bool:
        """Whether another transfer may start: few in a day, and one at a time in each account.

        The next one waits until the last is confirmed, or, if payments wait for it, until the last is signed.
        """
        if len(_of_the_day(transfers, clock_ms)) >= upkeep.ORDERS_A_DAY:
            return False
        waits_for, account = AWAITING_SIGNATURE if is_burst else UNDER_WAY, self.admission.planner.account
        return not any(one.state in waits_for and one.account == account for one in transfers)

    def _held(self, unit: Unit, slot: int) -> tuple[list[Held], dict[str, Utxo]]:
        """The UTxOs for payments, pending change included, and the same UTxOs by reference."""
        planner = self.admission.planner
        ancestors_max = planner.unconfirmed_ancestors
        available = [(utxo, ancestors_max + 1) for utxo in islice(planner.utxos.largest(), HELD_MAX)]
        chainable = {utxo.ref: ancestors_max - depth for utxo, depth in planner.chainable(unit, slot)}
        pending = [utxo_of(row) for row in attempts_and_utxos.coming_utxos(unit.conn, slot, planner.account)]
        utxos = [*available, *((utxo, chainable.get(utxo.ref, 0)) for utxo in pending)]
        held = [
            Held(utxo.ref, utxo.lovelace, left, _assets(utxo), is_in_block=left > ancestors_max)
            for utxo, left in utxos
        ]
        return held, {utxo.ref: utxo for utxo, _ in utxos}

    def _demand(
        self, unit: Unit, transfers: Sequence[UpkeepTxRow], waiting: Sequence[int], clock_ms: int, now_ms: int
    ) -> Demand:
        account = self.admission.planner.account
        begun = store_upkeep.begun(unit.conn, now_ms - upkeep.DAY_MS, account)
        gathered_ms = max(
            (one.counted_at_ms for one in transfers if one.kind == "sweep" and one.account == account),
            default=None,
        )
        is_quiet = (
            not waiting
            and all(payment.at_ms <= now_ms - upkeep.QUIET_MS for payment in begun)
            and (gathered_ms is None or gathered_ms <= clock_ms - upkeep.GATHERED_EVERY_MS)
            and not store_upkeep.is_any_in(unit.conn, UNDER_WAY, account)
        )
        return demand_of(begun, waiting, is_quiet=is_quiet)

    def _dust(self, assets: Set[str]) -> list[Held]:
        """The smallest UTxOs, except those with a token that payments are made of."""
        smallest = islice(self.admission.planner.utxos.smallest(), HELD_MAX)
        dust = (Held(utxo.ref, utxo.lovelace, 0, _assets(utxo)) for utxo in smallest)
        return [held for held in dust if not held.assets & assets]

    def _admit(
        self, unit: Unit, ids: Ids, move: Split | Gather, utxos: dict[str, Utxo], now_ms: int
    ) -> AdmittedPayment | None:
        """Admit the move; None, and nothing admitted, if it cannot be made exactly as decided."""
        planner = self.admission.planner
        is_split = isinstance(move, Split)
        spent = [utxos[move.ref]] if isinstance(move, Split) else [planner.utxos[ref] for ref in move.refs]
        outputs = split_outputs(planner.own, move.count, move.each_lovelace) if isinstance(move, Split) else ()

        def plan(_utxos: UtxoIndex, ttl_slot: int, _nonce_utxo: Utxo | None) -> TxPlan:
            network_id = planner.chain.network.network_id
            return build(
                spent, smallest_of(spent), outputs, change=planner.own, ttl_slot=ttl_slot, network_id=network_id
            )

        request = TransferRequest(
            ids,
            UPKEEP_APP,
            key=f"order:{ids.intent}",
            derived=True,
            fingerprint=ids.intent,
            kind="split" if is_split else "sweep",
        )
        apps.ensure_own(unit, UPKEEP_APP, "coin upkeep", now_ms)
        try:
            return self.admission.admit_transfer(unit, request, plan, now_ms)
        except Refused:
            return None


def _assets(utxo: Utxo) -> frozenset[str]:
    return frozenset(asset for asset, _ in utxo.assets)


def _of_the_day(transfers: Sequence[UpkeepTxRow], clock_ms: int) -> list[UpkeepTxRow]:
    return [transfer for transfer in transfers if transfer.counted_at_ms > clock_ms - upkeep.DAY_MS]
