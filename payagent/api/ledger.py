"""/v1/ledger: the books, for whoever holds a read token.

May import: audit, store.queries, the rest of api, FastAPI. Never: writes.
"""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from payagent.agent.agent import Agent
from payagent.agent.terms import Terms
from payagent.api.access import OPERATE, READ, Caller, need
from payagent.api.calls import Page, Parameters, time_ms
from payagent.api.problems import JsonResponse
from payagent.api.schemas import Balances, Entries, Verdict, gives
from payagent.api.views import balance_view, entry_view
from payagent.audit.export import Format, export
from payagent.audit.finding import Finding
from payagent.audit.signed import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.core.ledger import Kind
from payagent.core.money import parse_asset
from payagent.core.origin import parse_origin
from payagent.core.payment import State
from payagent.core.problem import Refused
from payagent.store import queries
from payagent.store.queries import Selection

FINDINGS_MAX = 1_000
"""More than that are counted, not told: who changed a whole table is found by any of its rows."""

_MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "beancount": "text/plain; charset=utf-8",
    "hledger": "text/plain; charset=utf-8",
}

Auditor = Annotated[Caller, Depends(need(READ, OPERATE))]

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])


class Chosen(Parameters):
    """Which part of the books. Merchant, app and state are those of an entry's payment."""

    since: Annotated[str | None, Field(description="RFC 3339, with its zone; from then on.")] = None
    until: Annotated[str | None, Field(description="RFC 3339, with its zone; before then.")] = None
    merchant: Annotated[str | None, Field(description="A merchant's name in the config, or its origin.")] = None
    app: Annotated[str | None, Field(description="An app's id or name.")] = None
    asset: Annotated[str | None, Field(description="lovelace, or policy and name in hex.")] = None
    kind: Annotated[Kind | None, Field(description="Of entry.")] = None
    state: State | None = None

    def selection(self, terms: Terms) -> Selection:
        return Selection(
            since_ms=None if self.since is None else time_ms(self.since, "since"),
            until_ms=None if self.until is None else time_ms(self.until, "until"),
            origin=None if self.merchant is None else _origin(self.merchant, terms),
            app=self.app,
            asset=None if self.asset is None else _asset(self.asset),
            kind=self.kind,
            state=self.state,
        )


class Filter(Page, Chosen):
    """Which entries."""

    payment: Annotated[str | None, Field(description="A payment's id.")] = None
    account: Annotated[str | None, Field(description="Entries that post to this account.")] = None


class Exported(Chosen):
    """Which part of the books, and how it is written."""

    format: Format = "csv"


def _origin(text: str, terms: Terms) -> str:
    """A merchant that is not configured any more goes by its origin."""
    named = next((merchant.origin for merchant in terms.merchants.values() if merchant.name == text), None)
    try:
        return named or parse_origin(text)
    except ValueError:
        raise Refused(
            "bad_request", "merchant is neither a name in [merchants] nor an origin", key="merchant"
        ) from None


def _asset(text: str) -> str:
    try:
        return parse_asset(text)
    except Refused as refused:
        raise Refused("bad_request", refused.detail, key="asset") from None


@router.get("/entries", summary="Journal entries, newest first", responses=gives(Entries, 200))
async def entries(caller: Auditor, query: Annotated[Filter, Query()]) -> JsonResponse:
    """The postings of an entry sum to zero per asset."""
    rows = queries.entries_page(
        caller.agent.conn,
        payment_id=query.payment,
        account=query.account,
        before_id=query.before,
        limit=query.limit,
        only=query.selection(caller.agent.terms),
    )
    cursor = str(rows[-1].id) if len(rows) == query.limit else None
    return JsonResponse({"entries": [entry_view(row) for row in rows], "cursor": cursor})


@router.get(
    "/balance",
    summary="Every account's balance, and the proof that they sum to zero",
    responses=gives(Balances, 200),
)
async def balance(caller: Auditor, query: Annotated[Chosen, Query()]) -> JsonResponse:
    """wallet + held is what the chain shows at our address when nothing is in flight.

    Of what is selected, it is the sum of its postings: with `until` alone, the balance at that time.
    """
    only = query.selection(caller.agent.terms)
    if only == queries.EVERYTHING:
        return JsonResponse(balance_view(queries.balances(caller.agent.conn)))
    return JsonResponse(balance_view(await run_in_threadpool(_balances, caller.agent, only)))


def _balances(agent: Agent, only: Selection) -> list[tuple[str, str, int]]:
    with agent.snapshot() as conn:
        return queries.balances(conn, only)


@router.get(
    "/verify",
    summary="Whether the books are whole",
    responses=gives(Verdict, 200),
    response_class=StreamingResponse,
)
async def verified(caller: Auditor) -> StreamingResponse:
    """Looks at every row, which takes its time; what there is to tell comes as it is found."""
    return await _streamed(_verdict(caller.agent), "application/json")


@router.get(
    "/export",
    summary="The books of a period, with their opening and closing balances",
    responses=gives(Entries, 200)
    | {
        200: {
            "description": "The export.",
            "content": {kind.partition(";")[0]: {} for kind in _MEDIA_TYPES.values()},
        }
    },
    response_class=StreamingResponse,
)
async def exported(caller: Auditor, query: Annotated[Exported, Query()]) -> StreamingResponse:
    """Oldest first, in one consistent state, however long it takes."""
    only = query.selection(caller.agent.terms)
    return await _streamed(_export(caller.agent, only, query.format), _MEDIA_TYPES[query.format])


def _export(agent: Agent, only: Selection, form: Format) -> Iterator[str]:
    with agent.snapshot() as conn:
        yield from export(statement(conn, only, agent.terms.network.name), form)


def _verdict(agent: Agent) -> Iterator[str]:
    """One JSON object in pieces: an empty line for each word of progress keeps who waits from giving up."""
    terms = agent.terms
    checked: Counter[str] = Counter()
    found = 0
    yield '{"findings":['
    with agent.snapshot() as conn:
        for told in verify(conn, Owner(terms.own, terms.network)):
            if isinstance(told, Finding):
                found += 1
                if found <= FINDINGS_MAX:
                    row = {"table": told.table, "row": told.row, "what": told.what}
                    yield ("," if found > 1 else "") + json.dumps(row)
            else:
                checked[told.table] = told.rows
                yield "\n"
    end = {"clean": not found, "found": found, "checked": dict(checked)}
    yield "]," + json.dumps(end)[1:]


async def _streamed(pieces: Iterator[str], media_type: str) -> StreamingResponse:
    """Read in other threads, piece by piece. What cannot be read at all is still told as a problem."""
    first = await run_in_threadpool(lambda: [next(pieces, ""), next(pieces, "")])
    return StreamingResponse(chain(first, pieces), media_type=media_type)
