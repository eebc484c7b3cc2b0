"""/v1/ledger: the books, for whoever holds a read token.

May import: core, agent, audit, store.rows, the rest of api, FastAPI. Never: writes.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Annotated, AnyStr, get_args

from fastapi import APIRouter, Depends, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from payagent.agent.base.config import AgentConfig
from payagent.agent.context import AgentContext
from payagent.api.http.problems import JsonResponse, ProblemDetails, to_json
from payagent.api.models.base import GivenAsset, GivenTime
from payagent.api.models.ledger import Balances, Entries, LedgerEntry, LedgerFinding, Spending, VerifyReport
from payagent.api.models.openapi import gives
from payagent.api.routes.auth import OPERATE, READ, Caller, need
from payagent.api.routes.params import Page, QueryParams
from payagent.audit.export import Format, export
from payagent.audit.finding import AuditFinding, Head, parse_head
from payagent.audit.signed_bytes import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.core.ledger import Kind
from payagent.core.origin import parse_origin
from payagent.core.payment import State
from payagent.core.problems import Refused
from payagent.store.rows import journal
from payagent.store.rows.journal import EntryRow, Selection, SpendKey, SpendRow

FINDINGS_MAX = 1_000
"""More than that are counted, not told: who changed a whole table is found by any of its rows."""

_SQLITE = "application/vnd.sqlite3"
_MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "beancount": "text/plain; charset=utf-8",
    "hledger": "text/plain; charset=utf-8",
}

_TEXT = (
    "Part of an entry's kind, ref or accounts, or of its payment's id, merchant, invoice id, request, transaction "
    "id or reason, in upper or lower case."
)
_BY = "merchant|app|day|month|asset"
_PIECE_BYTES = 1 << 20
_PAGE_CHARS = 1 << 16

Auditor = Annotated[Caller, Depends(need(READ, OPERATE))]
Operator = Annotated[Caller, Depends(need(OPERATE))]

router = APIRouter(prefix="/v1/ledger", tags=["ledger"])


class Chosen(QueryParams):
    """Which part of the books. Merchant, app and state are those of an entry's payment."""

    since: Annotated[GivenTime | None, Field(description="RFC 3339, with its zone; from then on.")] = None
    until: Annotated[GivenTime | None, Field(description="RFC 3339, with its zone; before then.")] = None
    merchant: Annotated[str | None, Field(description="A merchant's name in the config, or its origin.")] = None
    app: Annotated[str | None, Field(description="An app's id or name.")] = None
    asset: Annotated[GivenAsset | None, Field(description="lovelace, or policy and name in hex.")] = None
    kind: Annotated[Kind | None, Field(description="Of entry.")] = None
    state: State | None = None
    text: Annotated[str | None, Field(min_length=1, max_length=200, description=_TEXT)] = None

    def selection(self, caller: Caller) -> Selection:
        terms = caller.context.terms
        return Selection(
            since_ms=self.since,
            until_ms=self.until,
            origin=None if self.merchant is None else _origin(self.merchant, terms),
            app=None if self.app is None else caller.app_named(self.app).id,
            asset=self.asset,
            kind=self.kind,
            state=self.state,
            text=self.text,
        )


class Filter(Page, Chosen):
    """Which entries."""

    payment: Annotated[str | None, Field(description="A payment's id.")] = None
    account: Annotated[str | None, Field(description="Entries that post to this account.")] = None


class Grouped(Chosen):
    """Which part of the books, and what it is told by."""

    by: Annotated[
        str,
        Field(pattern=rf"^({_BY})(,({_BY}))*$", description=f"Some of {_BY}, with commas. Days are UTC's."),
    ] = "merchant"

    @property
    def keys(self) -> tuple[SpendKey, ...]:
        """Without the asset: amounts of two are never added."""
        given = dict.fromkeys(self.by.split(","))
        return tuple(key for name in given for key in get_args(SpendKey) if key == name)


class Noted(QueryParams):
    """What is known of an earlier time."""

    head: Annotated[
        str | None, Field(description="A head that verify told before. What was cut off since is found by it.")
    ] = None


class Exported(Chosen):
    """Which part of the books, and how it is written."""

    format: Format = "csv"


def _origin(text: str, terms: AgentConfig) -> str:
    """A merchant that is not configured any more goes by its origin."""
    named = next((merchant.origin for merchant in terms.merchants.values() if merchant.name == text), None)
    try:
        return named or parse_origin(text)
    except ValueError:
        raise Refused(
            "bad_request", "merchant is neither a name in [merchants] nor an origin", key="merchant"
        ) from None


@router.get("/entries", summary="Journal entries, newest first", responses=gives(Entries, 200))
async def entries(caller: Auditor, query: Annotated[Filter, Query()]) -> JsonResponse:
    """The postings of an entry sum to zero per asset."""
    only = query.selection(caller)
    rows = await run_in_threadpool(_entries, caller.context, query, only)
    cursor = str(rows[-1].id) if len(rows) == query.limit else None
    return JsonResponse(Entries(entries=[LedgerEntry.of(row) for row in rows], cursor=cursor))


def _entries(context: AgentContext, query: Filter, only: Selection) -> list[EntryRow]:
    with context.snapshot() as conn:
        return journal.entries_page(
            conn,
            payment_id=query.payment,
            account=query.account,
            before_id=query.before,
            limit=query.limit,
            only=only,
        )


@router.get(
    "/balance",
    summary="Every account's balance, and the proof that they sum to zero",
    responses=gives(Balances, 200),
)
async def balance(caller: Auditor, query: Annotated[Chosen, Query()]) -> JsonResponse:
    """wallet + held is what the chain shows at our address when nothing is in flight.

    Of what is selected, it is the sum of its postings: with `until` alone, the balance at that time.
    """
    only = query.selection(caller)
    if only == journal.EVERYTHING:
        return JsonResponse(Balances.of(journal.balances(caller.context.conn)))
    return JsonResponse(Balances.of(await run_in_threadpool(_balances, caller.context, only)))


def _balances(context: AgentContext, only: Selection) -> list[tuple[str, str, int]]:
    with context.snapshot() as conn:
        return journal.balances(conn, only)


@router.get("/spend", summary="What left the wallet", responses=gives(Spending, 200))
async def spend(caller: Auditor, query: Annotated[Grouped, Query()]) -> JsonResponse:
    """Over the whole time, the totals are what was deposited less what the chain shows at our address.

    A payment counts when it is confirmed, and with a fee alone when it was cancelled; what a rollback took back
    counts against it. `paid` went to merchants, also for what is prepaid, and `sent` where the operator sent it.
    """
    context, keys = caller.context, query.keys
    rows = await run_in_threadpool(_spend, context, keys, query.selection(caller))
    return JsonResponse(Spending.of(keys, rows, context.terms))


def _spend(context: AgentContext, keys: Sequence[SpendKey], only: Selection) -> list[SpendRow]:
    with context.snapshot() as conn:
        return journal.spend(conn, keys, only)


@router.get(
    "/verify",
    summary="Whether the books are whole",
    responses=gives(VerifyReport, 200),
    response_class=StreamingResponse,
)
async def verified(caller: Auditor, query: Annotated[Noted, Query()]) -> StreamingResponse:
    """Looks at every row, which takes its time; what there is to tell comes as it is found."""
    noted = None if query.head is None else parse_head(query.head)
    return await _streamed(caller, _verdict(caller.context, noted), "application/json")


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
    only = query.selection(caller)
    pages = _pages(_export(caller.context, only, query.format))
    return await _streamed(caller, pages, _MEDIA_TYPES[query.format])


def _export(context: AgentContext, only: Selection, form: Format) -> Iterator[str]:
    with context.snapshot() as conn:
        yield from export(statement(conn, only, context.terms.network.name), form)


@router.get(
    "/snapshot",
    summary="A copy of ledger.db as it is now, in one file",
    responses=gives(ProblemDetails) | {200: {"description": "An SQLite database.", "content": {_SQLITE: {}}}},
    response_class=StreamingResponse,
)
async def snapshot(caller: Operator) -> StreamingResponse:
    """Made before its first byte comes, which takes its time."""
    return await _streamed(caller, _copy(caller.context), _SQLITE)


def _copy(context: AgentContext) -> Generator[bytes]:
    with context.copied() as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _verdict(context: AgentContext, noted: Head | None) -> Generator[str]:
    """One JSON object in pieces: an empty line for each word of progress keeps who waits from giving up."""
    terms = context.terms
    checked: Counter[str] = Counter()
    found = 0
    head: Head | None = None
    yield '{"findings":['
    with context.snapshot() as conn:
        for told in verify(conn, Owner(terms.own, terms.network), noted):
            if isinstance(told, AuditFinding):
                found += 1
                if found <= FINDINGS_MAX:
                    yield ("," if found > 1 else "") + to_json(LedgerFinding.model_validate(told))
            elif isinstance(told, Head):
                head = told
            else:
                checked[told.table] = told.rows
                yield "\n"
    report = VerifyReport(findings=[], clean=not found, found=found, head=str(head), checked=checked)
    yield to_json(report).removeprefix('{"findings":[')


def _pages(pieces: Iterator[str]) -> Generator[str]:
    """Many small pieces as fewer larger ones."""
    page, size = [], 0
    for piece in pieces:
        page.append(piece)
        size += len(piece)
        if size >= _PAGE_CHARS:
            yield "".join(page)
            page, size = [], 0
    yield "".join(page)


class _Streamed(StreamingResponse):
    """What is read in other threads, piece by piece. What was opened for it is closed then, in one too: where the
    client has gone in between, that may wait for processes that help.
    """

    def __init__(self, told: Iterator[str | bytes], pieces: Generator[str | bytes], media_type: str) -> None:
        super().__init__(told, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(_close, self._pieces)


async def _streamed(caller: Caller, pieces: Generator[AnyStr], media_type: str) -> StreamingResponse:
    """Answered as long as the token is good. What cannot be read at all is still told as a problem."""
    first = await run_in_threadpool(lambda: list(islice(pieces, 2)))
    return _Streamed(caller.while_let_in(chain(first, pieces)), pieces, media_type)


def _close(pieces: Generator[str | bytes]) -> None:
    """End what reads. It is another thread's still where payagent stops: that one ends with the process."""
    with suppress(ValueError):
        pieces.close()
