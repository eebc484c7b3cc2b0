"""The invoice: a 402 in one canonical form, whatever dialect it came in, with the hash of its terms.

May import: the standard library and core. Never: reads a wire form (dialects do), or decides to pay (policy does).
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
_written = json.JSONEncoder(separators=(",", ":")).encode
_INVOICE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Output:
    """One (address, asset, units) that the transaction must pay, exactly and on its own."""

    role: Role
    address: Address
    asset: str
    units: int


@dataclass(frozen=True, slots=True)
class Invoice:
    """What a merchant asks for. `outputs` are in the order in which the transaction pays them, pay_to first.

    `expires_at_ms` is absolute, anchored to the receipt; None where the dialect gives no end. `batch_target` is
    the number of calls that the payment buys, as far as the merchant says. `proof` is what the retry carries.
    `handed_over`: the merchant broadcasts the transaction.
    """

    dialect: str
    origin: str
    invoice_id: str
    network: str
    outputs: tuple[Output, ...]
    expires_at_ms: int | None
    decimals: int | None = None
    batch_target: int | None = None
    proof: Proof = "tx_hash"
    handed_over: bool = False
    echo: str | None = None
    commitment: str | None = None
    has_own_id: bool = True

    @property
    def asset(self) -> str:
        return self.outputs[0].asset

    @property
    def total_units(self) -> int:
        """Units of the invoice's asset over pay_to and all splits (fee and riding ADA come on top)."""
        return sum(output.units for output in self.outputs)

    @property
    def calls(self) -> int:
        return calls_of(self.batch_target)

    @property
    def terms_hash(self) -> str:
        """sha256 over who gets how much of what, on which chain, for which id and how many calls.

        The expiry is left out: a relative time-out makes it differ at each receipt of the same invoice. So is what
        the operator's own settings say (the proof, who broadcasts), or what is drawn anew at each receipt (the
        commitment); where they are of the 402, it names no invoice, and the id is of all that it says.
        """
        outputs = [(o.role, o.address.text, o.asset, o.units) for o in self.outputs]
        return hash_of_terms(self.dialect, self.origin, self.invoice_id, self.network, outputs, self.calls)


def is_batch(batch_target: int | None) -> bool:
    """Whether more calls are bought than the one that is made."""
    return batch_target is not None and batch_target > 1


def calls_of(batch_target: int | None) -> int:
    """How many calls are bought; a merchant that says nothing of it sells one."""
    return batch_target or 1


def hash_of_terms(
    dialect: str,
    origin: str,
    invoice_id: str,
    network: str,
    outputs: Iterable[tuple[str, str, str, int]],
    calls: int,
) -> str:
    """The hash of an invoice's terms; an output is its role, address, asset and units."""
    paid = [[role, address, asset, str(units)] for role, address, asset, units in outputs]
    terms = [dialect, origin, invoice_id, network, paid, str(calls)]
    return hashlib.sha256(_written(terms).encode()).hexdigest()


def parse_invoice_id(value: object) -> str:
    """Read an invoice id: 1 to 128 of A-Z a-z 0-9 . _ : - (it travels in a header and in a path)."""
    if not isinstance(value, str) or not _INVOICE_ID.fullmatch(value):
        raise Refused("invoice_id_invalid", f"invoiceId is {str(value)[:60]!r}")
    return value


def check_outputs(outputs: tuple[Output, ...], own: Address | None) -> tuple[Output, ...]:
    """Refuse a set of outputs that cannot be what an honest invoice means; return it otherwise.

    At most 16 outputs; one asset in all; no address twice (a duplicate cannot be told from a mistake);
    none to our own payment key, whatever the stake part (it would fake spend).
    """
    if not outputs or len(outputs) > OUTPUTS_MAX:
        raise Refused("outputs_too_many", f"{len(outputs)} outputs, 1 to {OUTPUTS_MAX} are accepted")
    if len({output.asset for output in outputs}) != 1:
        raise Refused("split_not_understood", "a split in another asset than the invoice's")
    if len({output.address.raw for output in outputs}) != len(outputs):
        raise Refused("split_not_understood", "the same address is to be paid twice")
    if own is not None and any(output.address.payment_key_hash == own.payment_key_hash for output in outputs):
        raise Refused("address_own", "an output pays the wallet's own key")
    return outputs
