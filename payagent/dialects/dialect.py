"""A dialect: how its 402 is told from others and read, how it is paid, and what the answers to its proof mean.

Each dialect's module ends with its `Dialect`, and `registry` lists them.

Never: names a dialect.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from payagent.core.invoice import Invoice
from payagent.core.pay_and_retry import RetryVerdict
from payagent.dialects.http_wire import HttpResponse, ProofMaterial, Reading

Terms = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Shape:
    """A form of 402. A 402 with the marks of two shapes is refused, and so is one with none."""

    name: str  # how a refusal names the form
    has_marks: Callable[[HttpResponse], object]  # true if the 402 has the marks of this form
    find_terms: Callable[[HttpResponse], Terms]  # the object that states the terms; raises Refused


class WriteProof(Protocol):
    """Writes the headers of a retry. Each writer uses the fields that its dialect shows."""

    def __call__(
        self, *, invoice_id: str, shown: ProofMaterial, echo: str | None, partner: str | None, wallet: str
    ) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class RetryAnswer:
    """A verdict with the merchant's `reason` as bounded ASCII for people.

    `poll_query`: add this to the URL's query for the next request, and leave out the proof.
    """

    verdict: RetryVerdict
    reason: str
    retry_after_s: int | None = None
    poll_query: str | None = None


@dataclass(frozen=True, slots=True)
class RetriedProof:
    """The proof that a merchant answers."""

    invoice_id: str
    tx_id: str
    is_on_chain: bool  # we have seen the transaction in a block
    has_served: bool  # the proof has already bought a request


@dataclass(frozen=True, slots=True)
class AnswerRules:
    """The words of a dialect's answers to a retry."""

    read_402: Callable[[HttpResponse, RetriedProof], tuple[RetryVerdict, str]]  # the verdict and the word for it
    is_unclear_refused: bool  # a 402 with an unclear word refuses the proof
    is_unsettled: Callable[[HttpResponse], bool] = lambda _: False  # another status that is read like a 402
    read_pending: Callable[[HttpResponse, RetriedProof], RetryAnswer | None] | None = (
        None  # a success that is none
    )


@dataclass(frozen=True, slots=True)
class Dialect:
    """One merchant protocol. Invoices are stored with `name`, so it never changes."""

    name: str
    shape: Shape  # versions of one protocol share a shape
    read: Callable[[Terms, HttpResponse, Reading], tuple[Invoice, ...] | None]  # None: another one of the shape
    proof_headers: WriteProof
    answers: AnswerRules
    is_timed_by_block: bool = False  # the time left counts from the newest block's slot; a later TTL is refused
    has_status: bool = False  # merchants report the status of a payment
    names_payer: bool = False  # the proof names the address that paid
