"""Transactions: selects UTxOs, builds the body, signs it, reads the bytes again and checks them.

Start here: the other rooms use the wallet through this module. All functions are pure (the signer holds the only
secret), so the same UTxOs and outputs give the same bytes, even after a crash.

Rules: Conway's UTXO and UTXOW (see `tx_plan`).

Never: pycardano, I/O, a clock.
"""

from collections.abc import Sequence, Set

from payagent.core.address import Address
from payagent.core.hard_caps import FEE_CAP_LOVELACE
from payagent.core.invoice import Output, Role
from payagent.core.money import LOVELACE
from payagent.wallet.coin_selection import choose, choose_all, smallest_of, take
from payagent.wallet.tx_check import CheckFailed, check
from payagent.wallet.tx_plan import (
    Frame,
    PlannedOutput,
    TxParameters,
    TxPlan,
    assemble,
    finish,
    lay_order,
    min_lovelace,
)
from payagent.wallet.utxo_index import Utxo, UtxoIndex

__all__ = [
    "FEE_CAP_LOVELACE",
    "MAINNET_PARAMETERS",
    "CheckFailed",
    "PlannedOutput",
    "TxParameters",
    "TxPlan",
    "assemble",
    "build",
    "check",
    "min_lovelace",
    "select",
    "send_all",
    "smallest_of",
    "split_outputs",
]

MAINNET_PARAMETERS = TxParameters()


def select(
    utxos: UtxoIndex,
    outputs: Sequence[Output],
    *,
    change: Address,
    ttl_slot: int,
    network_id: int,
    params: TxParameters = MAINNET_PARAMETERS,
    fee_cap_lovelace: int = FEE_CAP_LOVELACE,
    nonce_utxo: Utxo | None = None,
    commitment: bytes | None = None,
) -> TxPlan:
    """Choose UTxOs for the outputs and build the transaction.

    A given `nonce_utxo` is always spent, whether it is in `utxos` or not. Refused: `invoice_invalid`,
    `not_enough_funds`, `utxos_too_small`, `fee_too_high`.
    """
    frame = Frame(change, ttl_slot, network_id, params, fee_cap_lovelace, commitment=commitment)
    order = lay_order(outputs, frame)
    draft = choose(utxos, order, nonce_utxo)
    return finish(draft, nonce_utxo or smallest_of(draft.utxos))


def build(
    inputs: Sequence[Utxo],
    nonce_utxo: Utxo,
    outputs: Sequence[Output],
    *,
    change: Address,
    ttl_slot: int,
    network_id: int,
    params: TxParameters = MAINNET_PARAMETERS,
    rest_role: Role = "change",
    commitment: bytes | None = None,
) -> TxPlan:
    """Build the transaction that spends exactly these UTxOs, as `select` or `send_all` built it for them.

    Refused like `select`. `not_enough_funds` also means that the change would be below min-ADA.
    """
    if nonce_utxo.ref not in {utxo.ref for utxo in inputs}:
        raise ValueError(f"the nonce UTxO {nonce_utxo.ref} is not among the inputs")
    frame = Frame(change, ttl_slot, network_id, params, FEE_CAP_LOVELACE, rest_role, commitment)
    order = lay_order(outputs, frame)
    return finish(take(inputs, order), nonce_utxo)


def send_all(
    utxos: UtxoIndex,
    to: Address,
    *,
    own: Address,
    ttl_slot: int,
    network_id: int,
    nonce_utxo: Utxo | None = None,
    barred: Set[str] = frozenset(),
) -> TxPlan:
    """Send everything to `to`, less the fee: as many UTxOs as fit one transaction, smallest first.

    A wallet with more UTxOs needs several such transactions. To the wallet's own address it is a consolidation.
    UTxOs with a `barred` token are left out. A given `nonce_utxo` is always spent.
    Refused: `not_enough_funds`, `fee_too_high`.
    """
    role: Role = "change" if to.raw == own.raw else "pay_to"
    order = lay_order((), Frame(to, ttl_slot, network_id, MAINNET_PARAMETERS, FEE_CAP_LOVELACE, role))
    draft = choose_all(utxos, order, nonce_utxo, barred)
    return finish(draft, nonce_utxo or smallest_of(draft.utxos))


def split_outputs(own: Address, count: int, lovelace: int) -> tuple[Output, ...]:
    """Return the outputs of `wallet split`: `count` outputs of `lovelace` each to ourselves."""
    return tuple(Output("change", own, LOVELACE, lovelace) for _ in range(count))
