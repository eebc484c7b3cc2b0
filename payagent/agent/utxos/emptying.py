"""Plans a transfer of everything available, except UTxOs with a token that may not leave.

Anybody can send us such a token, and the signer refuses to move it. The UTxO that holds it stays; all others are
sent.
May import: core, store.rows, wallet, agent.commits, agent.base. Never: signs; waits for anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.agent.base.orders import AdmittedPayment, TransferRequest
from payagent.agent.commits.admission import Admission
from payagent.core.address import Address
from payagent.core.hard_caps import Caps, barred
from payagent.core.money import LOVELACE, format_amount
from payagent.core.payment import Event
from payagent.core.problems import Refused
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import events
from payagent.wallet.transaction import TxPlan, send_all
from payagent.wallet.utxo_index import Utxo, UtxoIndex

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
        utxos = "1 coin" if self.utxos == 1 else f"{self.utxos} coins"
        more = len(self.assets) - NAMED_MAX
        names = ", ".join(self.assets[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{utxos} with {format_amount(LOVELACE, self.lovelace)}, since no table [[limits.assets]] of the "
            f"config lets {names} leave; what ADA there is to spare goes with "
            "`payagent wallet send ADDRESS --amount`"
        )

    @property
    def view(self) -> dict[str, object]:
        """The form in the record and the API."""
        told = {"utxos": self.utxos, "lovelace": str(self.lovelace), "assets": list(self.assets[:NAMED_MAX])}
        return told | {"detail": self.detail}


def left_behind(utxos: UtxoIndex, caps: Caps) -> Leftovers | None:
    """What must stay of these UTxOs; None if nothing."""
    assets = sorted(barred(utxos.totals, caps))
    stay = {utxo.ref: utxo.lovelace for asset in assets for utxo in utxos.asset_largest(asset)}
    return Leftovers(len(stay), sum(stay.values()), tuple(assets)) if stay else None


def told_of(conn: Connection, payment_id: str) -> Mapping[str, object] | None:
    """What a payment that emptied the wallet left behind, from its record; None if nothing."""
    held = events.last_note(conn, payment_id, Event.HOLD)
    return None if held is None else held.get("left_behind")


def admit(admission: Admission, unit: Unit, order: TransferRequest, to: Address, now_ms: int) -> AdmittedPayment:
    """Admit a transfer of everything available, as `Admission.admit_transfer` does.

    To our own address it includes all UTxOs, because no token leaves.
    """
    planner = admission.planner
    own, network_id = planner.own, planner.chain.network.network_id
    caps = None if to.raw == own.raw else admission.rulebook.caps
    behind = None if caps is None else left_behind(planner.utxos, caps)

    def plan(utxos: UtxoIndex, ttl_slot: int, nonce_utxo: Utxo | None) -> TxPlan:
        stay = frozenset() if caps is None else barred(utxos.totals, caps)
        return send_all(
            utxos, to, own=own, ttl_slot=ttl_slot, network_id=network_id, nonce_utxo=nonce_utxo, barred=stay
        )

    told = None if behind is None else {"left_behind": behind.view}
    try:
        return admission.admit_transfer(unit, order, plan, now_ms, told)
    except Refused as refusal:
        raise _explained(refusal, behind) from None


def _explained(refusal: Refused, behind: Leftovers | None) -> Refused:
    """The refusal, with what the operator can do about it."""
    if refusal.code == "not_enough_funds" and behind is not None:
        return Refused("asset_not_allowed", f"nothing is left to send but {behind.detail}", asset=behind.assets[0])
    if refusal.code == "limit_exceeded":
        what_to_do = (
            "send parts of at most that with --amount, as far as limits.signed_per_day lets them, or raise both "
            "in the config and start the daemon again"
        )
        return Refused(refusal.code, f"{refusal.detail}; {what_to_do}", **refusal.context)
    return refusal
