"""The operator's transfers: out of the wallet, or within it. No app's limit applies to them.

"All" leaves the UTxOs that hold a token which may not leave. Anybody can send us such a token, and the signer
refuses to move it.
Never: pays an invoice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from payagent.agent.base.requests import AdmittedPayment, TransferRequest, digest
from payagent.agent.commits.tx_planner import TransferPlan
from payagent.agent.context import AgentContext
from payagent.agent.pay.admission import Admission
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.core.address import Address
from payagent.core.aggregate import PaymentRow
from payagent.core.hard_caps import Caps, barred
from payagent.core.invoice import Output, Role
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment.machine import Event
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import events
from payagent.wallet.transaction import TxPlan, select, send_all, split_outputs
from payagent.wallet.utxo_index import Utxo, UtxoIndex


class Transfers:
    """Makes transfers. The same key makes the same transfer only once."""

    def __init__(self, context: AgentContext, signing: PaymentSigner, lifecycle: PaymentLifecycle) -> None:
        self._context = context
        self._signing = signing
        self._lifecycle = lifecycle

    async def send(
        self, app_id: str, to: Address, asset: str, units: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Send an amount from the wallet. No limit applies. The transfer is recorded before it is submitted.

        Returns the payment, and whether it is new.
        """
        role: Role = "change" if to.raw == self._context.config.own.raw else "pay_to"
        outputs = (Output(role, to, asset, units),)
        request = self._request(app_id, "send", key, to.text, asset, str(units))
        return await self._transfer(request, partial(self._select, outputs))

    async def send_all(self, app_id: str, to: Address, key: str | None = None) -> tuple[PaymentRow, bool]:
        """Send everything that is available and may leave, smallest UTxOs first, up to one full transaction."""
        request = self._request(app_id, "sweep", key, to.text)
        return await self._admit_and_send(
            request, lambda unit, now_ms: admit_send_all(self._context.admission, unit, request, to, now_ms)
        )

    async def split(
        self, app_id: str, count: int, lovelace: int, key: str | None = None
    ) -> tuple[PaymentRow, bool]:
        """Create `count` UTxOs of pure ADA, so that as many payments can be in flight at once."""
        outputs = split_outputs(self._context.config.own, count, lovelace)
        request = self._request(app_id, "split", key, str(count), str(lovelace))
        return await self._transfer(request, partial(self._select, outputs))

    def _request(self, app_id: str, kind: str, key: str | None, *parts: str) -> TransferRequest:
        ids = self._context.new_ids()
        return TransferRequest(
            ids=ids,
            app_id=app_id,
            key=f"order:{ids.intent}" if key is None else f"key:{key}",
            derived=key is None,
            fingerprint=digest([kind, *parts]),
            kind=kind,
        )

    async def _transfer(self, request: TransferRequest, plan: TransferPlan) -> tuple[PaymentRow, bool]:
        return await self._admit_and_send(
            request, lambda unit, now_ms: self._context.admission.admit_transfer(unit, request, plan, now_ms)
        )

    async def _admit_and_send(
        self, request: TransferRequest, admit: Callable[[Unit, int], AdmittedPayment]
    ) -> tuple[PaymentRow, bool]:
        with self._signing.claim(request.ids.payment):
            return await self._lifecycle.carry_out(await self._context.write_at("admit", admit))

    def _select(
        self, outputs: Sequence[Output], utxos: UtxoIndex, ttl_slot: int, nonce_utxo: Utxo | None
    ) -> TxPlan:
        return select(
            utxos,
            outputs,
            change=self._context.config.own,
            ttl_slot=ttl_slot,
            network_id=self._context.config.network.network_id,
            nonce_utxo=nonce_utxo,
        )


NAMED_MAX = 8
"""Most tokens named in a message: a stranger can send very many."""


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The UTxOs that stay, and the tokens in them that may not leave."""

    utxos: int
    lovelace: int
    assets: tuple[str, ...]

    @property
    def detail(self) -> str:
        """What stays, why, and how to send its spare ADA."""
        utxos = "1 UTxO" if self.utxos == 1 else f"{self.utxos} UTxOs"
        more = len(self.assets) - NAMED_MAX
        names = ", ".join(self.assets[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{utxos} with {format_amount(LOVELACE, self.lovelace)}, since no table [[limits.assets]] of the "
            f"config lets {names} leave; send its spare ADA with "
            "`payagent wallet send ADDRESS --amount`"
        )

    @property
    def view(self) -> dict[str, object]:
        """The form in the record and the API."""
        view = {"utxos": self.utxos, "lovelace": str(self.lovelace), "assets": list(self.assets[:NAMED_MAX])}
        return view | {"detail": self.detail}


def left_behind(utxos: UtxoIndex, caps: Caps) -> Leftovers | None:
    """What must stay of these UTxOs; None if nothing."""
    assets = sorted(barred(utxos.totals, caps))
    stay = {utxo.ref: utxo.lovelace for asset in assets for utxo in utxos.asset_largest(asset)}
    return Leftovers(len(stay), sum(stay.values()), tuple(assets)) if stay else None


def left_behind_of(conn: Connection, payment_id: str) -> Mapping[str, object] | None:
    """What a transfer of everything left behind, from its record. None if nothing."""
    detail = events.last_note(conn, payment_id, Event.RESERVE)
    return None if detail is None else detail.get("left_behind")


def admit_send_all(
    admission: Admission, unit: Unit, request: TransferRequest, to: Address, now_ms: int
) -> AdmittedPayment:
    """Admit a transfer of everything available, as `Admission.admit_transfer` does.

    To our own address it includes all UTxOs, because no token leaves.
    """
    planner = admission.planner
    own, network_id = planner.own, planner.chain.network.network_id
    caps = None if to.raw == own.raw else admission.rules.config.caps
    leftovers = None if caps is None else left_behind(planner.utxos, caps)

    def plan(utxos: UtxoIndex, ttl_slot: int, nonce_utxo: Utxo | None) -> TxPlan:
        stay = frozenset() if caps is None else barred(utxos.totals, caps)
        return send_all(
            utxos, to, own=own, ttl_slot=ttl_slot, network_id=network_id, nonce_utxo=nonce_utxo, barred=stay
        )

    detail = None if leftovers is None else {"left_behind": leftovers.view}
    try:
        return admission.admit_transfer(unit, request, plan, now_ms, detail)
    except Refused as refusal:
        raise _explained(refusal, leftovers) from None


def _explained(refusal: Refused, leftovers: Leftovers | None) -> Refused:
    """The refusal, with what the operator can do about it."""
    if refusal.code == "not_enough_funds" and leftovers is not None:
        return Refused(
            "asset_not_allowed", f"nothing is left to send but {leftovers.detail}", asset=leftovers.assets[0]
        )
    if refusal.code == "limit_exceeded":
        advice = (
            "send parts of at most that with --amount, as far as limits.signed_per_day lets them, or raise both "
            "in the config and start the daemon again"
        )
        return Refused(refusal.code, f"{refusal.detail}; {advice}", **refusal.context)
    return refusal
