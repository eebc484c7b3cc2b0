"""/v1/ledger: the books, for whoever holds a read token.

May import: store.queries, the rest of api, FastAPI. Never: writes.
"""

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import Field

from payagent.api.access import OPERATE, READ, Caller, need
from payagent.api.calls import Page
from payagent.api.problems import JsonResponse
from payagent.api.schemas import Balances, Entries, gives
from payagent.api.views import balance_view, entry_view
from payagent.store import queries

Auditor = Annotated[Caller, Depends(need(READ, OPERATE))]

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])


class Filter(Page):
    """Which entries."""

    payment: Annotated[str | None, Field(description="A payment's id.")] = None
    account: Annotated[str | None, Field(description="Entries that post to this account.")] = None


@router.get("/entries", summary="Journal entries, newest first", responses=gives(Entries, 200))
async def entries(caller: Auditor, query: Annotated[Filter, Query()]) -> JsonResponse:
    """The postings of an entry sum to zero per asset."""
    rows = queries.entries_page(
        caller.agent.conn,
        payment_id=query.payment,
        account=query.account,
        before_id=query.before,
        limit=query.limit,
    )
    cursor = str(rows[-1].id) if len(rows) == query.limit else None
    return JsonResponse({"entries": [entry_view(row) for row in rows], "cursor": cursor})


@router.get(
    "/balance",
    summary="Every account's balance, and the proof that they sum to zero",
    responses=gives(Balances, 200),
)
async def balance(caller: Auditor) -> JsonResponse:
    """wallet + held is what the chain shows at our address when nothing is in flight."""
    return JsonResponse(balance_view(queries.balances(caller.agent.conn)))
