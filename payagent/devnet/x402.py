"""The devnet's x402 shop: decides whether to serve a call under /x402/, and records the payments.

Start at `Shop.ask`. A payment is settled before the call is served, so even a streamed answer is paid. A
transaction buys the one call (method, path, body) that it was first presented for. The last price quoted for a
call is the valid one.

Pure: the node and the terms come in as arguments.

Never: imports the dialects.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from payagent.devnet.facilitator import DUPLICATE, PAYLOAD, PENDING, Facilitator, Settlement, Unpayable
from payagent.devnet.merchant import Terms
from payagent.devnet.node import Node
from payagent.devnet.x402_terms import (
    NETWORK,
    READERS,
    X402,
    BadIdentifier,
    X402Fault,
    X402Request,
    read_identifier,
    requirements,
)


class Kind(Enum):
    """How a call ended."""

    UNPAID = "unpaid"
    REFUSED = "refused"
    UNSETTLED = "unsettled"
    SERVED = "served"
    BROKEN = "broken"
    DROPPED = "dropped"
    MOVED = "moved"
    BAD_IDENTIFIER = "bad_identifier"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call. `reason` says why it was refused; `settlement` is the payment's result."""

    kind: Kind
    reason: str = ""
    settlement: Settlement | None = None
    again: bool = False


class Shop:
    """The records and rules of /x402/. Price and asset come from the merchant's terms; there are no splits.

    In `counts`, `served` are first answers to a payment and `replayed` further ones.
    """

    def __init__(self, node: Node, terms: Callable[[], Terms]) -> None:
        self._terms = terms
        self._identified: dict[str, str] = {}
        self._asked: dict[str, dict[str, object]] = {}
        self.facilitator = Facilitator(node, NETWORK)
        self.x402 = X402()
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    @property
    def terms(self) -> Terms:
        return self._terms()

    def ask(self, call: X402Request) -> Answer:
        """Serve a call, or return what it costs."""
        if call.proof is None:
            self.counts["unpaid"] += 1
            self._asked[call.key] = requirements(self.terms, self.x402)
            return Answer(Kind.UNPAID)
        answer = self._judge(call, call.proof)
        self._count(answer)
        return answer

    def _judge(self, call: X402Request, proof: str) -> Answer:
        required = self._asked.get(call.key) or requirements(self.terms, self.x402)
        try:
            payment = READERS[self.x402.version](proof, call, required)
            identifier = read_identifier(payment, self.x402)
        except BadIdentifier as bad:
            return Answer(Kind.BAD_IDENTIFIER, str(bad))
        except Unpayable as refused:
            return Answer(Kind.REFUSED, refused.reason)
        if (reason := self.facilitator.verify(required, payment)) is not None:
            return Answer(Kind.REFUSED, reason)
        if identifier is not None and self._identified.setdefault(identifier, proof) != proof:
            return Answer(Kind.CONFLICT, "the identifier named another payment")
        return self._settle(call, required, payment)

    def _settle(self, call: X402Request, required: Mapping[str, object], payment: Mapping[str, object]) -> Answer:
        fault = self.x402.fault
        if fault is not None and fault in _BEFORE:
            self._meet(fault)
            return _BEFORE[fault]
        replays = self.terms.replays == "serve"
        settlement = self.facilitator.settle(required, payment, call.key, replays=replays)
        if fault is not None and fault in _AFTER and settlement.reason in (None, PENDING):
            self._meet(fault)
            return _AFTER[fault](settlement)
        if settlement.reason is not None:
            return Answer(Kind.UNSETTLED, settlement.reason, settlement)
        again = self.facilitator.served(settlement.tx_id) > 0
        return Answer(Kind.SERVED, "", settlement, again)

    def _meet(self, fault: X402Fault) -> None:
        left = self.x402.fault_count
        if left is not None:
            self.x402 = replace(self.x402, fault=fault if left > 1 else None, fault_count=left - 1 or None)
        self.faults[fault] += 1

    def _count(self, answer: Answer) -> None:
        if answer.kind is Kind.SERVED:
            self.counts["replayed" if answer.again else "served"] += 1
        elif answer.reason == PENDING:
            self.counts["pending"] += 1
        elif answer.kind in (Kind.REFUSED, Kind.UNSETTLED):
            self.refused[answer.reason] += 1
        elif answer.kind in (Kind.BAD_IDENTIFIER, Kind.CONFLICT):
            self.refused[answer.kind.value] += 1

    def as_json(self) -> Mapping[str, object]:
        """The shop's records: each transaction with the call that it paid."""
        payments = []
        for claim in self.facilitator.claims.values():
            method, path, _ = json.loads(claim.buys)
            payments.append(
                {
                    "txHash": claim.tx_id,
                    "method": method,
                    "path": path,
                    "asset": claim.asset,
                    "units": str(claim.units),
                    "rejected": claim.rejected,
                    "served": claim.served,
                }
            )
        return {
            "payments": payments,
            "identifiers": list(self._identified),
            **{name: self.counts[name] for name in ("unpaid", "served", "replayed", "pending")},
            "refused": dict(sorted(self.refused.items())),
            "faults": dict(sorted(self.faults.items())),
        }


_BEFORE: dict[str, Answer] = {
    "refuse_verify": Answer(Kind.REFUSED, f"{PAYLOAD}_phase1_invalid"),
    "ttl_too_far": Answer(Kind.REFUSED, f"{PAYLOAD}_ttl_too_far"),
    "settle_500_before_broadcast": Answer(Kind.BROKEN),
}
"""Faults that leave the transaction unsubmitted."""

_AFTER: dict[str, Callable[[Settlement], Answer]] = {
    "settle_500_after_broadcast": lambda _: Answer(Kind.BROKEN),
    "drop_after_broadcast": lambda _: Answer(Kind.DROPPED),
    "redirect_307": lambda _: Answer(Kind.MOVED),
    "pending": lambda settled: Answer(Kind.UNSETTLED, PENDING, replace(settled, reason=PENDING)),
    "duplicate": lambda settled: Answer(Kind.UNSETTLED, DUPLICATE, replace(settled, reason=DUPLICATE)),
    "empty_reason": lambda settled: Answer(Kind.UNSETTLED, "", Settlement("", settled.network)),
}
"""Faults after the transaction was submitted. They hide its status."""
