"""The devnet's x402 facilitator: verifies that a signed transaction pays what a 402 asks, and settles it.

Start at `Facilitator`. The rules are those of the `exact` scheme on Cardano (x402 version 2, default transfer
method). Where the scheme leaves a choice, they are stricter. A transaction must have a TTL, its inputs must be in
a block, and the owner of the nonce must have signed. A transaction buys one call only, however often it is
presented.

Pure: the chain and its clock come in as the `Node` argument.

Never: imports the wallet or the dialects, so that it cannot repeat a mistake of the payer.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b

from payagent.core.address import encode_address
from payagent.devnet.address import read_address
from payagent.devnet.ledger import UNSUPPORTED, LedgerError, OutRef, Tx, TxOut, check_tx, decode_tx
from payagent.devnet.node import Node, output_of
from payagent.devnet.rules import unverified_keys

Json = Mapping[str, object]

PAYLOAD = "invalid_exact_cardano_payload"
REQUIREMENTS = "invalid_exact_cardano_requirements"
UNSUPPORTED_SCHEME = "unsupported_scheme"
NETWORK_MISMATCH = "network_mismatch"
PENDING = "settlement_pending"
DUPLICATE = "duplicate_settlement"
REJECTED = "exact_cardano_settlement_definitively_rejected"
FAILED = "exact_cardano_settlement_failed"

IN_MEMPOOL = -1
DEFAULT_CONFIRMATIONS, MOST_CONFIRMATIONS = 1, 20
_MODES = {None: ("server",), "server": ("server",), "client": ("client",), "either": ("server", "client")}
_CIP34 = {
    "cip34:1-764824073": "cardano:mainnet",
    "cip34:0-1": "cardano:preprod",
    "cip34:0-2": "cardano:preview",
}
_ASSET = re.compile(r"lovelace|[0-9a-f]{56}\.[0-9a-f]{0,64}", re.ASCII)
_AMOUNT = re.compile(r"[1-9][0-9]*", re.ASCII)
_NONCE = re.compile(r"([0-9a-fA-F]{64})#([0-9]{1,5})", re.ASCII)
_LEDGER_REASONS = {
    "ValueNotConservedUTxO": f"{PAYLOAD}_value_not_conserved",
    "FeeTooSmallUTxO": f"{PAYLOAD}_fee_below_minimum",
    "BabbageOutputTooSmallUTxO": f"{PAYLOAD}_min_utxo_insufficient",
}
_PHASE_1 = f"{PAYLOAD}_phase1_invalid"


class Unpayable(Exception):  # noqa: N818  a verdict, not an error of ours
    """The payment does not pay. `reason` is a code of the scheme's catalogue."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def require(holds: object, reason: str) -> None:
    """Raise `Unpayable` unless the condition holds."""
    if not holds:
        raise Unpayable(reason)


@dataclass(frozen=True, slots=True)
class VerifiedPayment:
    """A verified payment: the transaction, the payer, and what its settlement needs."""

    tx: Tx
    payer: str
    confirmations: int
    by_client: bool


# --- requirements and payments -----------------------------------------------------------------------------------


def _check_header(requirements: Json, payment: Json, network: str) -> None:
    require(
        payment.get("x402Version") == 2 and not isinstance(payment.get("x402Version"), bool),
        f"{PAYLOAD}_unsupported_version",
    )
    accepted = object_of(payment.get("accepted"))
    require(accepted.get("scheme") == "exact" and requirements.get("scheme") == "exact", UNSUPPORTED_SCHEME)
    require(
        canonical(accepted.get("network")) == canonical(requirements.get("network")) == network, NETWORK_MISMATCH
    )
    asset, amount = requirements.get("asset"), requirements.get("amount")
    is_valid = isinstance(asset, str) and _ASSET.fullmatch(asset) and isinstance(amount, str)
    require(
        is_valid and _AMOUNT.fullmatch(str(amount)) and _whole(requirements.get("maxTimeoutSeconds")) > 0,
        REQUIREMENTS,
    )


def canonical(network: object) -> object:
    """A network by its canonical name. The set of aliases is closed."""
    return _CIP34.get(network, network) if isinstance(network, str) else network


def _read_policy(requirements: Json, payment: Json) -> tuple[int, bool]:
    """(newer blocks needed to settle, or -1 for the mempool; whether the payer submits)."""
    extra = object_of(requirements.get("extra"))
    require(extra.get("assetTransferMethod", "default") == "default", UNSUPPORTED_SCHEME)
    policy = extra.get("confirmationPolicy", {"l1Confirmations": DEFAULT_CONFIRMATIONS})
    depth = policy.get("l1Confirmations") if isinstance(policy, dict) and len(policy) == 1 else None
    submission = extra.get("submissionPolicy")
    if type(depth) is not int or not IN_MEMPOOL <= depth <= MOST_CONFIRMATIONS or submission not in list(_MODES):
        raise Unpayable(f"{REQUIREMENTS}_policy")
    mode = object_of(payment.get("payload")).get("submissionMode", "server")
    require(mode in _MODES[submission], PAYLOAD)
    return depth, mode == "client"


def _read_nonce(payment: Json) -> OutRef:
    nonce = object_of(payment.get("payload")).get("nonce")
    match = _NONCE.fullmatch(nonce) if isinstance(nonce, str) else None
    if match is None:
        raise Unpayable(f"{PAYLOAD}_nonce_invalid")
    return match[1].lower(), int(match[2])


def read_transaction(payment: Json) -> Tx:
    """The transaction that a payment carries. Raises `Unpayable`."""
    text = object_of(payment.get("payload")).get("transaction")
    if not isinstance(text, str):
        raise Unpayable(PAYLOAD)
    try:
        return decode_tx(base64.b64decode(text, validate=True))
    except LedgerError as error:
        reason = _PHASE_1 if error.rule == UNSUPPORTED else f"{PAYLOAD}_transaction_decode_failed"
        raise Unpayable(reason) from error
    except ValueError as error:
        raise Unpayable(f"{PAYLOAD}_transaction_decode_failed") from error


def object_of(value: object) -> dict[str, object]:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def _whole(value: object) -> int:
    return value if type(value) is int else 0


# --- the transaction ---------------------------------------------------------------------------------------------


def _check_form(tx: Tx, nonce: OutRef, node: Node) -> None:
    """The checks that do not need the chain's UTxOs."""
    require(tx.network_id in (None, node.chain.params.network_id), f"{PAYLOAD}_network_id_mismatch")
    require(tx.witnesses, f"{PAYLOAD}_unsigned")
    require(not unverified_keys(tx), f"{PAYLOAD}_invalid_signature")
    require(nonce in tx.inputs, f"{PAYLOAD}_nonce_not_in_inputs")
    require(tx.is_valid, f"{PAYLOAD}_phase2_invalid")


def _check_window(tx: Tx, timeout_s: int, node: Node, sent: bool) -> None:
    """Check the TTL: present, in the future, and no later than the timeout allows, counted from the newest block.

    Facilitators that read the slot from a provider count from the newest block too. The devnet's slots are
    seconds.
    """
    slot = node.chain.slot
    if tx.ttl_slot is None:
        raise Unpayable(f"{PAYLOAD}_ttl_too_far")
    require(sent or tx.ttl_slot <= node.chain.tip.slot + timeout_s, f"{PAYLOAD}_ttl_too_far")
    require(sent or tx.ttl_slot > slot, f"{PAYLOAD}_ttl_expired")
    require(tx.start_slot is None or tx.start_slot <= slot, f"{PAYLOAD}_not_yet_valid")


def _check_inputs(tx: Tx, nonce: OutRef, node: Node) -> None:
    """Check that the inputs are unspent as of the tip. As for a provider, mempool outputs do not count."""
    require(nonce in node.chain.utxos, f"{PAYLOAD}_nonce_not_on_chain")
    require(all(ref in node.chain.utxos for ref in tx.inputs), f"{PAYLOAD}_input_not_available")


def _payer(tx: Tx, owned: TxOut | None) -> str:
    """The address that holds the nonce. Its key must have signed (all signatures were verified before).

    The output is missing only if the transaction was sent before and a rollback took the nonce. It may come back.
    """
    if owned is None:
        return ""
    signers = {blake2b(key, digest_size=28).digest() for key, _ in tx.witnesses}
    require(read_address(owned.address).key_hash in signers, f"{PAYLOAD}_payer_not_witness")
    return encode_address(owned.address).text


def _check_ledger(tx: Tx, node: Node) -> None:
    """Check everything that the ledger itself would refuse."""
    try:
        check_tx(tx, node.chain.utxos, node.chain.slot, node.chain.params)
    except LedgerError as error:
        raise Unpayable(_LEDGER_REASONS.get(error.rule, _PHASE_1)) from error


def _check_output(requirements: Json, tx: Tx) -> None:
    """Check that one output holds the whole amount. Several outputs to the same address do not add up."""
    to_recipient = [out for out in tx.outputs if encode_address(out.address).text == requirements.get("payTo")]
    require(to_recipient, f"{PAYLOAD}_recipient_mismatch")
    asset = str(requirements["asset"]).replace(".", "")
    paid_units = [out.lovelace if asset == "lovelace" else out.assets.get(asset, 0) for out in to_recipient]
    require(any(paid_units), f"{PAYLOAD}_asset_mismatch")
    require(max(paid_units) >= int(str(requirements["amount"])), f"{PAYLOAD}_amount_insufficient")


# --- settlement --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Settlement:
    """The result for a payment. `reason` None is success; `confirmations` as in the scheme, None if not seen."""

    reason: str | None
    network: object
    tx_id: str = ""
    payer: str = ""
    confirmations: int | None = None

    def as_json(self) -> dict[str, object]:
        """The decoded PAYMENT-RESPONSE."""
        fields: dict[str, object] = {"success": self.reason is None}
        if self.reason is not None:
            fields["errorReason"] = self.reason
        fields |= {"transaction": self.tx_id, "network": self.network}
        if self.payer:
            fields["payer"] = self.payer
        if self.reason in (None, PENDING):
            fields["extra"] = self._evidence()
        return fields

    def _evidence(self) -> dict[str, object]:
        if self.reason == PENDING:
            status: dict[str, object] = {"status": "pending", "transactionId": self.tx_id}
        else:
            status = {"status": "mempool" if self.confirmations == IN_MEMPOOL else "confirmed"}
        return status if self.confirmations is None else status | {"confirmations": self.confirmations}


@dataclass(slots=True)
class SettledClaim:
    """A transaction accepted as payment for one call. `served` counts how often the call was answered."""

    tx_id: str
    buys: str
    asset: str
    units: int
    rejected: bool = False
    served: int = 0


class Facilitator:
    """Settles payments at one node. Transactions are claimed by their id, not by their bytes."""

    def __init__(self, node: Node, network: str = "cardano:devnet") -> None:
        self.node = node
        self.network = network
        self.claims: dict[str, SettledClaim] = {}

    def verify(self, requirements: Json, payment: Json) -> str | None:
        """Why the payment does not pay what is required; None if it does. Changes nothing.

        `requirements` is an entry of `accepts`, `payment` the decoded PAYMENT-SIGNATURE. A transaction that is
        being settled still pays.
        """
        try:
            self._check(requirements, payment)
        except Unpayable as refused:
            return refused.reason
        return None

    def settle(self, requirements: Json, payment: Json, buys: str, *, replays: bool = False) -> Settlement:
        """Submit the transaction and report its status. `buys` names the call, which may settle again.

        A transaction that a rollback removed is submitted again. With `replays`, a served call may settle again;
        without it, that is a duplicate.
        """
        network = object_of(payment.get("accepted")).get("network")
        try:
            tx_id = read_transaction(payment).tx_id
            claim = self.claims.get(tx_id)
            if claim is not None and (claim.buys != buys or (claim.served and not replays)):
                return Settlement(DUPLICATE, network, tx_id)
            verified = self._check(requirements, payment)
        except Unpayable as refused:
            return Settlement(refused.reason, network)
        is_new = claim is None
        if claim is None:
            units = int(str(requirements["amount"]))
            claim = self.claims[tx_id] = SettledClaim(tx_id, buys, str(requirements["asset"]), units)
        if not (claim.rejected or verified.by_client) and self.node.chain.tx(tx_id) is None:
            try:
                self.node.submit(verified.tx.raw)
            except LedgerError:
                claim.rejected = is_new  # accepted once: a later refusal by the node changes nothing
        if claim.rejected:
            return Settlement(REJECTED, network, tx_id, verified.payer)
        return self._look(verified, network)

    def served(self, tx_id: str) -> int:
        """Count one more answer to the call. Returns how many there were before."""
        claim = self.claims[tx_id]
        claim.served += 1
        return claim.served - 1

    def _check(self, requirements: Json, payment: Json) -> VerifiedPayment:
        """Read and verify the payment. Claimed transactions were sent, so their inputs may be spent."""
        node = self.node
        _check_header(requirements, payment, self.network)
        confirmations, by_client = _read_policy(requirements, payment)
        nonce = _read_nonce(payment)
        tx = read_transaction(payment)
        _check_form(tx, nonce, node)
        sent = tx.tx_id in self.claims or node.chain.tx(tx.tx_id) is not None
        _check_window(tx, _whole(requirements.get("maxTimeoutSeconds")), node, sent)
        if not sent:
            _check_inputs(tx, nonce, node)
        payer = _payer(tx, output_of(node.chain, nonce))
        if not sent:
            _check_ledger(tx, node)
        _check_output(requirements, tx)
        return VerifiedPayment(tx, payer, confirmations, by_client)

    def _look(self, verified: VerifiedPayment, network: object) -> Settlement:
        tx = verified.tx
        seen = self.node.seen(tx.tx_id)
        confirmations = None if seen is None else seen.depth - 1
        reason: str | None = PENDING
        if confirmations is not None and confirmations >= verified.confirmations:
            reason = None
        elif seen is None and tx.ttl_slot is not None and tx.ttl_slot <= self.node.chain.slot:
            reason = FAILED
        return Settlement(reason, network, tx.tx_id, verified.payer, confirmations)
