"""The invoice: a 402 of any dialect in one canonical form, with a hash of its terms.

Never: reads a wire form (`dialects` does), or decides whether to pay (`policy` does).
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from payagent.core.address import Address
from payagent.core.problems import Refused

OUTPUTS_MAX = 16

Role = Literal["pay_to", "split", "change"]
SplitMode = Literal["additional", "inclusive", "outputs"]
Proof = Literal["tx_hash", "signed_cbor"]
_to_json = json.JSONEncoder(separators=(",", ":")).encode
_INVOICE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Output:
    """One output that the transaction must contain, with exactly this amount."""

    role: Role
    address: Address
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """The payment that a merchant asks for."""

    dialect: str
    origin: str
    invoice_id: str
    network: str
    outputs: tuple[Output, ...]  # in the order of the transaction's outputs, pay_to first
    expires_at_ms: int | None  # computed from the time of receipt; None if the dialect states no expiry
    decimals: int | None = None
    batch_target: int | None = None  # how many requests the payment buys, if the merchant says so
    proof: Proof = "tx_hash"  # what the retry carries
    merchant_submits: bool = False  # whether the merchant submits the transaction
    echo: str | None = None  # JSON of the 402 that the proof repeats
    commitment: str | None = None  # hex; the transaction commits to it
    has_own_id: bool = True  # the 402 named `invoice_id`; False if the dialect derived it from the terms

    @property
    def asset(self) -> str:
        return self.outputs[0].asset

    @property
    def total_units(self) -> int:
        """Units of the invoice's asset in all outputs. Fee and min-ADA come on top."""
        return sum(output.units for output in self.outputs)

    @property
    def calls(self) -> int:
        return calls_of(self.batch_target)

    @property
    def terms_hash(self) -> str:
        """SHA-256 in hex of dialect, origin, invoice id, network, outputs and number of calls.

        It excludes values that may change between two receipts of the same invoice: the expiry (from a relative
        timeout), the commitment (from a fresh salt), and the operator's settings (`proof`, `merchant_submits`).
        In x402 the 402 itself sets the last two, and there the invoice id is a hash of all its terms.
        """
        outputs = [(o.role, o.address.text, o.asset, o.units) for o in self.outputs]
        return hash_of_terms(self.dialect, self.origin, self.invoice_id, self.network, outputs, self.calls)


def is_batch(batch_target: int | None) -> bool:
    """Whether the payment buys more than one call."""
    return batch_target is not None and batch_target > 1


def calls_of(batch_target: int | None) -> int:
    """How many calls the payment buys: one, unless the merchant says otherwise."""
    return batch_target or 1


def hash_of_terms(
    dialect: str,
    origin: str,
    invoice_id: str,
    network: str,
    outputs: Iterable[tuple[str, str, str, int]],
    calls: int,
) -> str:
    """Hash an invoice's terms (see `Invoice.terms_hash`). An output is (role, address, asset, units)."""
    paid = [[role, address, asset, str(units)] for role, address, asset, units in outputs]
    terms = [dialect, origin, invoice_id, network, paid, str(calls)]
    return hashlib.sha256(_to_json(terms).encode()).hexdigest()


def parse_invoice_id(value: object) -> str:
    """Parse an invoice id: 1 to 128 of A-Z a-z 0-9 . _ : - (it goes into a header and a URL path)."""
    if not isinstance(value, str) or not _INVOICE_ID.fullmatch(value):
        raise Refused("invoice_invalid/id", f"invoiceId is {str(value)[:60]!r}")
    return value


def check_outputs(outputs: tuple[Output, ...], own: Address | None) -> tuple[Output, ...]:
    """Return the outputs, or refuse them if no honest invoice could mean them.

    1 to 16 outputs, all in one asset. No address twice, because a duplicate may be a mistake.
    No output to our own payment key, with any stake part: it would count as spent but stay in the wallet.
    """
    if not outputs or len(outputs) > OUTPUTS_MAX:
        raise Refused(
            "invoice_invalid/too_many_outputs", f"{len(outputs)} outputs, 1 to {OUTPUTS_MAX} are accepted"
        )
    if len({output.asset for output in outputs}) != 1:
        raise Refused("split_ambiguous", "a split in another asset than the invoice's")
    if len({output.address.raw for output in outputs}) != len(outputs):
        raise Refused("split_ambiguous", "the same address is to be paid twice")
    if own is not None and any(output.address.payment_key_hash == own.payment_key_hash for output in outputs):
        raise Refused("address_invalid/own", "an output pays this wallet")
    return outputs
