"""The devnet's merchant: invoices, the check of payments, prepaid balances. Stricter than real merchants.

Start at `DevnetMerchant.ask`. A transaction pays an invoice if all of this holds:
- It is in a block, deep enough, and that block is not older than the invoice nor later than its expiry.
- It pays no other invoice.
- Each required output is one output with exactly the requested units, and those addresses get nothing else.

An invoice is for one request: method, path, body, and the partner and wallet if the request named them. Pure: the
clock, the ids and the merchant's node come in as arguments.

Never: imports the dialects, so that it cannot repeat a mistake of the payer.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import lru_cache, partial
from hashlib import blake2b, sha256
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass as settings

from payagent.core.address import Address, encode_address, parse_address
from payagent.core.money import LOVELACE, parse_asset, parse_units
from payagent.core.network import NETWORKS
from payagent.devnet.ledger import LedgerError, Tx, TxOut, decode_tx
from payagent.devnet.node import Seen
from payagent.devnet.settings import STRICT, made

DEVNET = NETWORKS["devnet"]
T_BACKEND: Final = "t-backend"
FLUX: Final = "flux"
_TX_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SIGNED_CBOR = re.compile(r"(?:[0-9a-f]{2}){65,}", re.ASCII)
_ROLE = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII)
_SPLIT_WORDS = {
    "role": "role",
    "address": "address",
    "to": "address",
    "units": "units",
    "amount": "units",
    "amountUnits": "units",
}
_MOST_SPLITS = 15


@lru_cache(maxsize=1000)
def role_address(role: str) -> Address:
    """The devnet address of a role. Its key hashes are fixed and no one has the keys. pay_to has a stake part."""
    payment = blake2b(f"payagent devnet {role}".encode(), digest_size=28).digest()
    if role != "pay_to":
        return encode_address(b"\x60" + payment)
    stake = blake2b(b"payagent devnet stake", digest_size=28).digest()
    return encode_address(b"\x00" + payment + stake)


@dataclass(frozen=True, slots=True)
class RevenueShare:
    """One revenue share, in the invoice's asset."""

    role: str
    address: Address
    units: int


def _read_splits(value: object) -> object:
    return tuple(_read_split(item) for item in value) if isinstance(value, list) else value


def _read_split(item: object) -> RevenueShare:
    """A split with the keys of /merchant/state, or with those of a 402: `to`, `amount`, `amountUnits`."""
    named = [(_SPLIT_WORDS.get(name, ""), value) for name, value in item.items()] if isinstance(item, dict) else []
    split = dict(named)
    if "units" not in split or "" in split or len(split) != len(named):
        raise ValueError("a split is an object of units and, if wanted, address and role")
    role = split.get("role", "split")
    if not isinstance(role, str) or not _ROLE.fullmatch(role) or role == "pay_to":
        raise ValueError("a role is a short lower-case name, and not pay_to")
    address = parse_address(split["address"], DEVNET) if "address" in split else role_address(role)
    return RevenueShare(role, address, parse_units(split["units"], "units"))


def _read_address(value: object) -> Address:
    return value if isinstance(value, Address) else parse_address(value, DEVNET)


@settings(frozen=True, slots=True, config=STRICT)
class Terms:
    """The terms of invoices, and how invoices are written. Money is in units of `asset`, time in seconds.

    `split_mode`: `additional` shares come on top of the price; `inclusive` shares are taken from it; `outputs` is
    `inclusive` written as the whole list of outputs, with pay_to.
    `split_form`: how a list without pay_to is written: `split` (an object that states its mode) or `outputs` (a
    bare list that states none).
    `dialect`: with `x402`, all calls are sold as those under /x402/ are, without splits and batches.
    `replays`: whether a proof that was answered is answered again; None follows the dialect. A replay with an
    X-Idempotency-Key that the first call lacked gets a new invoice, as from the vendor's middleware.
    `proof`: X-Payment carries a `tx_hash`, or as `signed_cbor` the signed transaction in hex, which the merchant
    submits. `either` accepts both, as the documents say.
    `balance_shape`: how /payments/balance reports prepaid calls, which no document defines: `plain` numbers,
    `nested` under `detail`, strings of `digits`, `nonsense` that contradicts itself, or `missing` (404).
    """

    price_units: Annotated[int, BeforeValidator(parse_units)] = 10_000_000
    asset: Annotated[str, BeforeValidator(parse_asset)] = LOVELACE
    pay_to: Annotated[Address, BeforeValidator(_read_address)] = role_address("pay_to")
    splits: Annotated[tuple[RevenueShare, ...], BeforeValidator(_read_splits), Field(max_length=_MOST_SPLITS)] = (
        RevenueShare("platform", role_address("platform"), 2_000_000),
        RevenueShare("creator", role_address("creator"), 1_000_000),
    )
    split_mode: Literal["additional", "inclusive", "outputs"] = "additional"
    split_form: Literal["split", "outputs"] = "split"
    batch: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    timeout_s: Annotated[int, Field(ge=1, le=86_400)] = 300
    confirmations: Annotated[int, Field(ge=0, le=100)] = 1
    dialect: Literal["t-backend", "flux", "x402"] = T_BACKEND
    replays: Literal["serve", "refuse"] | None = None
    proof: Literal["either", "tx_hash", "signed_cbor"] = "either"
    balance_shape: Literal["plain", "nested", "digits", "nonsense", "missing"] = "plain"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.pay_to_units <= 0:
            raise ValueError("the splits leave nothing of the price")
        if self.dialect == FLUX and "outputs" in (self.split_mode, self.split_form):
            raise ValueError("flux writes splits with their mode only: split_mode additional or inclusive")
        return self

    @property
    def sells_batches(self) -> bool:
        """Whether a payment buys more than one call."""
        return self.batch > 1 and self.dialect != "x402"

    @property
    def pay_to_units(self) -> int:
        """The units that the pay_to output must hold."""
        shares = sum(split.units for split in self.splits)
        return self.price_units if self.split_mode == "additional" else self.price_units - shares

    @property
    def required(self) -> tuple[tuple[bytes, int], ...]:
        """The required outputs: (address, units of the asset)."""
        shares = tuple((split.address.raw, split.units) for split in self.splits)
        return ((self.pay_to.raw, self.pay_to_units), *shares)


def read_settings(body: Mapping[str, object], now: Terms) -> Terms:
    """The terms with some settings replaced. Raises `BadSettings`, or `Refused` for money and addresses."""
    return made(partial(replace, now), {_NAMES.get(name, name): value for name, value in body.items()})


_NAMES = {"price": "price_units", "timeout": "timeout_s"}
"""The names of settings in /merchant/settings that differ."""


# --- requests and invoices ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShopRequest:
    """One request for a paid resource. `path` includes the query; absent headers are None.

    A `top_up` buys a batch for the balance and uses no call of it. `key` is the X-Idempotency-Key.
    """

    method: str
    path: str
    body: bytes
    partner: str | None
    wallet: str | None
    invoice_id: str | None
    proof: str | None
    top_up: bool = False
    key: str | None = None

    @property
    def request_key(self) -> tuple[str, ...]:
        """The parts of a request that an invoice is bound to."""
        body_hash = sha256(self.body).hexdigest()
        return (self.method, self.path, body_hash, self.partner or "", self.wallet or "")

    @property
    def buyer(self) -> tuple[str, str]:
        """The partner and wallet that own the prepaid balance."""
        return (self.partner or "", self.wallet or "")


@dataclass(slots=True)
class ShopInvoice:
    """An invoice and its payment. Times are POSIX milliseconds."""

    id: str
    terms: Terms
    request_key: tuple[str, ...]
    partner: str
    created_ms: int
    ends_ms: int
    key: str | None
    presented: str | None = None
    paid_by: str | None = None


class Outcome(Enum):
    """How a call ended."""

    SERVED = "served"
    REPLAYED = "replayed"
    INVOICE = "invoice"
    PENDING = "pending"
    WRONG = "wrong"
    WALLET_REQUIRED = "wallet_required"
    NO_BATCHES = "no_batches"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a call. `reason` and `detail` say why a proof was refused."""

    outcome: Outcome
    invoice: ShopInvoice | None = None
    reason: str = ""
    detail: str = ""


class OwnNode(Protocol):
    """The merchant's own node, to read the chain and to submit."""

    def seen(self, tx_id: str) -> Seen | None: ...

    def waiting(self) -> list[Tx]: ...

    def submit(self, raw: bytes) -> str: ...


@dataclass(slots=True)
class BuyerAccount:
    """A buyer's batches, and how many calls of them were used."""

    batches: list[ShopInvoice] = field(default_factory=list)
    used: int = 0


@dataclass(frozen=True, slots=True)
class Balance:
    """Prepaid calls: bought on the current chain, used, and left."""

    bought: int
    used: int

    @property
    def left(self) -> int:
        """Never below zero. Calls served from a batch that was rolled back are deducted from later purchases."""
        return max(0, self.bought - self.used)


class DevnetMerchant:
    """The merchant's records and rules. `counts` has the calls by how they ended, `refused` the wrong proofs."""

    def __init__(self, node: OwnNode, new_id: Callable[[], str]) -> None:
        self._node = node
        self._new_id = new_id
        self._open: dict[tuple[str, ...], ShopInvoice] = {}
        self._paid_with: dict[str, str] = {}
        self.terms = Terms()
        self.invoices: dict[str, ShopInvoice] = {}
        self.accounts: dict[tuple[str, str], BuyerAccount] = {}
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def set_terms(self, terms: Terms) -> None:
        """Set the terms of new invoices. Unpaid invoices stay payable but are not handed out again."""
        self.terms = terms
        self._open.clear()

    def ask(self, call: ShopRequest, now_ms: int) -> Verdict:
        """Serve a call, or return what it costs."""
        if call.invoice_id is None and call.proof is None:
            verdict = self._without_proof(call, now_ms)
        else:
            verdict = self._with_proof(call, now_ms)
        self._count(call, verdict)
        return verdict

    def balance(self, buyer: tuple[str, str]) -> Balance:
        """The sum of a buyer's batches. A batch counts only while its transaction is on the chain."""
        account = self.accounts.get(buyer, BuyerAccount())
        standing = sum(invoice.terms.batch for invoice in account.batches if self._stands(invoice))
        return Balance(standing, account.used)

    def _count(self, call: ShopRequest, verdict: Verdict) -> None:
        is_served = verdict.outcome is Outcome.SERVED
        self.counts["topped_up" if is_served and call.top_up else verdict.outcome.value] += 1
        self.counts["served_prepaid"] += is_served and verdict.invoice is None
        if verdict.outcome is Outcome.WRONG:
            self.refused[verdict.reason] += 1

    def _without_proof(self, call: ShopRequest, now_ms: int) -> Verdict:
        if call.top_up and not self.terms.sells_batches:
            return Verdict(Outcome.NO_BATCHES)
        if not call.top_up and self.balance(call.buyer).left > 0:
            self.accounts[call.buyer].used += 1
            return Verdict(Outcome.SERVED)
        if self.terms.batch > 1 and not call.wallet:
            return Verdict(Outcome.WALLET_REQUIRED)
        return Verdict(Outcome.INVOICE, self._invoice_for(call, now_ms))

    def _invoice_for(self, call: ShopRequest, now_ms: int) -> ShopInvoice:
        """The request's open invoice if it has at least a second left, else a new one."""
        open_invoice = self._open.get(call.request_key)
        if open_invoice is not None and open_invoice.paid_by is None and open_invoice.ends_ms - now_ms >= 1000:
            return open_invoice
        ends_ms = now_ms + self.terms.timeout_s * 1000
        partner = call.partner or ""
        invoice = ShopInvoice(self._new_id(), self.terms, call.request_key, partner, now_ms, ends_ms, call.key)
        self.invoices[invoice.id] = self._open[call.request_key] = invoice
        return invoice

    def _with_proof(self, call: ShopRequest, now_ms: int) -> Verdict:
        invoice = self.invoices.get(call.invoice_id or "")
        if invoice is None:
            return _wrong(None, "unknown_invoice", "X-Invoice-Id names no invoice of this merchant")
        if not _is_for(invoice, call):
            return _wrong(invoice, "other_request", "the invoice is for another request, partner or wallet")
        tx_id, tx = self._read_proof(call.proof or "")
        if tx_id is None:
            form = "tx_hash or signed_cbor" if self.terms.proof == "either" else self.terms.proof
            return _wrong(invoice, "proof_not_understood", f"X-Payment must be a {form} in hex")
        if invoice.paid_by is not None:
            if invoice.paid_by != tx_id:
                return _wrong(invoice, "paid_already", "another transaction paid the invoice")
            if self.terms.replays == "refuse":
                return _wrong(invoice, "paid_already", "the transaction was answered already")
            if call.key not in (None, invoice.key):
                return Verdict(Outcome.INVOICE, self._invoice_for(call, now_ms))
            return Verdict(Outcome.REPLAYED if self._stands(invoice) else Outcome.PENDING, invoice)
        if tx_id in self._paid_with:
            return _wrong(invoice, "transaction_used", "the transaction paid another invoice")
        if tx is not None and (refusal := self._send(invoice, tx, now_ms)) is not None:
            return refusal
        return self._look(call, invoice, tx_id, now_ms)

    def _read_proof(self, proof: str) -> tuple[str | None, Tx | None]:
        """(transaction id, the transaction if it is the proof itself); (None, None) for an invalid proof."""
        form = self.terms.proof
        if form != "signed_cbor" and _TX_HASH.fullmatch(proof):
            return proof, None
        if form == "tx_hash" or not _SIGNED_CBOR.fullmatch(proof):
            return None, None
        try:
            tx = decode_tx(bytes.fromhex(proof))
        except LedgerError:
            return None, None
        return tx.tx_id, tx

    def _send(self, invoice: ShopInvoice, tx: Tx, now_ms: int) -> Verdict | None:
        """Submit a transaction that the node does not know, if the invoice is open. Returns a refusal or None."""
        if self._node.seen(tx.tx_id) is not None or now_ms >= invoice.ends_ms:
            return None
        if (fault := output_fault(invoice.terms, tx.outputs)) is not None:
            return _wrong(invoice, "wrong_outputs", fault)
        try:
            self._node.submit(tx.raw)
        except LedgerError as error:
            return _wrong(invoice, "not_accepted", error.rule)
        return None

    def _look(self, call: ShopRequest, invoice: ShopInvoice, proof: str, now_ms: int) -> Verdict:
        invoice.presented = proof
        seen = self._node.seen(proof)
        if seen is not None and (fault := output_fault(invoice.terms, seen.tx.outputs)) is not None:
            return _wrong(invoice, "wrong_outputs", fault)
        time_ms = now_ms if seen is None or seen.time_ms is None else seen.time_ms
        if time_ms >= invoice.ends_ms:
            return _wrong(invoice, "expired", "the invoice was over before the transaction was in a block")
        if time_ms // 1000 < invoice.created_ms // 1000:
            return _wrong(
                invoice, "older_than_invoice", "the transaction was in a block before the invoice was made"
            )
        if seen is None or seen.depth < invoice.terms.confirmations:
            return Verdict(Outcome.PENDING, invoice)
        self._accept(call, invoice, proof)
        return Verdict(Outcome.SERVED, invoice)

    def _accept(self, call: ShopRequest, invoice: ShopInvoice, proof: str) -> None:
        invoice.paid_by = proof
        self._paid_with[proof] = invoice.id
        if invoice.terms.batch > 1:
            account = self.accounts.setdefault(call.buyer, BuyerAccount())
            account.batches.append(invoice)
            account.used += not call.top_up

    def _stands(self, invoice: ShopInvoice) -> bool:
        """Whether the paying transaction is on the chain and deep enough. A rollback may have removed it."""
        seen = None if invoice.paid_by is None else self._node.seen(invoice.paid_by)
        return seen is not None and seen.depth >= invoice.terms.confirmations

    def status(self, invoice: ShopInvoice, now_ms: int) -> str:
        """pending, submitted, confirmed, consumed or expired, judged by the presented proof.

        A merchant that needs no confirmation also looks for the payment in its own mempool.
        """
        if self._stands(invoice):
            return "consumed"
        if invoice.presented is None and invoice.terms.confirmations == 0:
            invoice.presented = self._paying(invoice)
        presented = invoice.paid_by or invoice.presented
        seen = self._node.seen(presented) if presented is not None else None
        if seen is not None and output_fault(invoice.terms, seen.tx.outputs) is None:
            return "confirmed" if seen.depth >= invoice.terms.confirmations else "submitted"
        return "expired" if now_ms >= invoice.ends_ms and invoice.paid_by is None else "pending"

    def _paying(self, invoice: ShopInvoice) -> str | None:
        """The first transaction in the mempool that pays this invoice and is not presented for another."""
        taken = {other.presented for other in self.invoices.values()}
        paying = (tx for tx in self._node.waiting() if output_fault(invoice.terms, tx.outputs) is None)
        return next((tx.tx_id for tx in paying if tx.tx_id not in taken), None)


def _is_for(invoice: ShopInvoice, call: ShopRequest) -> bool:
    """Whether the invoice is for this call. A call without partner or wallet may name them with the proof."""
    return all(bound in ("", named) for bound, named in zip(invoice.request_key, call.request_key, strict=True))


def _wrong(invoice: ShopInvoice | None, reason: str, detail: str) -> Verdict:
    return Verdict(Outcome.WRONG, invoice, reason, detail)


def output_fault(terms: Terms, outputs: tuple[TxOut, ...]) -> str | None:
    """Why a transaction's outputs are not exactly what the terms require; None if they are.

    Every required output is one output with exactly its units, and the required addresses get no other. An ADA
    output holds no tokens. A token output may carry any lovelace but no second asset.
    """
    missing = Counter(terms.required)
    required_addresses = {address for address, _ in missing}
    for index, out in enumerate(outputs):
        if out.address not in required_addresses:
            continue
        paid = (out.address, _exact_units(out, terms.asset))
        if missing[paid] == 0:
            return f"output {index} is not one that the invoice asks for"
        missing[paid] -= 1
    missing_count = sum(missing.values())
    return f"{missing_count} of the required outputs are missing" if missing_count else None


def _exact_units(out: TxOut, asset: str) -> int:
    """The output's units of the asset, or 0 if it holds another asset too."""
    if asset == LOVELACE:
        return 0 if out.assets else out.lovelace
    return out.assets.get(asset, 0) if len(out.assets) == 1 else 0
