"""/v1/ledger: entries, balances, spend, refusals, a month's report, verification and export of the ledger.

Never: writes, but for the alert after a check.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from typing import Annotated, AnyStr, TypeVar, get_args

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from payagent.agent.context import AgentContext
from payagent.agent.operator.alerts import note_check
from payagent.api.http.problems import JsonResponse, to_json
from payagent.api.models.base import GivenAsset
from payagent.api.models.ledger import (
    Balances,
    Entries,
    LedgerEntry,
    LedgerFinding,
    LedgerRefusal,
    LedgerTransaction,
    MonthReport,
    Refusals,
    Spending,
    Transactions,
    VerifyReport,
)
from payagent.api.models.openapi import gives, gives_as
from payagent.api.routes.auth import Caller, Operator, Reader
from payagent.api.routes.params import Page, QueryParams, SelectionFilter
from payagent.audit.export import Format, export
from payagent.audit.finding import AuditFinding, Head, parse_head
from payagent.audit.month import MonthRecords
from payagent.audit.signed_bytes import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.core.ledger import Kind
from payagent.core.payment.machine import State
from payagent.store.audit.payment_records import signed_transactions
from payagent.store.db.unit import Connection
from payagent.store.rows import journal, operator_log
from payagent.store.rows.journal import Selection, SpendKey

T = TypeVar("T")

FINDINGS_MAX = 1_000
"""Further findings are only counted: any row shows that a whole table was changed."""

_SQLITE = "application/vnd.sqlite3"
_MEDIA_TYPES: dict[Format, str] = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "beancount": "text/plain; charset=utf-8",
    "hledger": "text/plain; charset=utf-8",
}

_TEXT = (
    "Text in an entry's kind, ref or accounts, or in its payment's id, merchant, invoice id, request, transaction "
    "id or reason. Case does not matter."
)
_BY = "merchant|app|path|destination|hour|day|week|month|asset"
_PIECE_BYTES = 1 << 20


router = APIRouter(prefix="/v1/ledger", tags=["ledger"])


class EntryFilter(SelectionFilter):
    """Filters of ledger entries. Merchant, app and state are those of an entry's payment."""

    asset: Annotated[GivenAsset | None, Field(description="lovelace, or policy and name in hex.")] = None
    kind: Annotated[Kind | None, Field(description="The kind of entry.")] = None
    state: State | None = None
    text: Annotated[str | None, Field(min_length=1, max_length=200, description=_TEXT)] = None

    def selection(self, caller: Caller) -> Selection:
        only = caller.selection(self)
        return replace(only, asset=self.asset, kind=self.kind, state=self.state, text=self.text)


class EntryPage(Page, EntryFilter):
    """Filters of a page of entries."""

    payment: Annotated[str | None, Field(description="A payment's id.")] = None
    account: Annotated[str | None, Field(description="Entries that post to this account.")] = None


class SpendQuery(EntryFilter):
    """Filters of the spend, and how to group it."""

    by: Annotated[
        str,
        Field(
            pattern=rf"^({_BY})(,({_BY}))*$", description=f"Any of {_BY}, separated by commas. Days are in UTC."
        ),
    ] = "merchant"
    after: Annotated[
        int | None,
        Field(ge=0, lt=10**18, description="Only entries after this one: last_entry of an earlier answer."),
    ] = None

    def selection(self, caller: Caller) -> Selection:
        return replace(super().selection(caller), after_id=self.after)

    @property
    def keys(self) -> tuple[SpendKey, ...]:
        """Without the asset: amounts of two assets are never added."""
        names = dict.fromkeys(self.by.split(","))
        return tuple(key for name in names for key in get_args(SpendKey) if key == name)


class RefusalPage(SelectionFilter, Page):
    """Filters of a page of refusals."""

    code: Annotated[str | None, Field(description="The code of the refusal, such as limit_exceeded.")] = None


class MonthQuery(QueryParams):
    """The month of a report."""

    month: Annotated[str, Field(pattern=r"^20[0-9]{2}-(0[1-9]|1[0-2])$", description="Such as 2026-11, UTC.")]


class VerifyQuery(QueryParams):
    """An earlier state to compare with."""

    head: Annotated[
        str | None,
        Field(description="The `head` of an earlier verification. With it, rows removed since are found."),
    ] = None


class ExportQuery(EntryFilter):
    """Filters and format of an export."""

    format: Format = "csv"


@router.get("/entries", summary="List ledger entries, newest first", responses=gives(Entries, 200))
async def entries(caller: Reader, query: Annotated[EntryPage, Query()]) -> JsonResponse:
    """The postings of an entry sum to zero per asset."""
    page = partial(
        journal.entries_page,
        payment_id=query.payment,
        account=query.account,
        before_id=query.before,
        limit=query.limit,
        only=query.selection(caller),
    )
    rows = await _read(caller.context, page)
    listed = [LedgerEntry.of(row, caller.context.config) for row in rows]
    return JsonResponse(Entries(entries=listed, cursor=query.next_of([row.id for row in rows])))


@router.get(
    "/transactions",
    summary="List the bytes of every signed transaction, newest first",
    responses=gives(Transactions, 200),
)
async def transactions(caller: Reader, query: Annotated[Page, Query()]) -> JsonResponse:
    """For readers that decode them on their own, as `payagent ledger verify --second-reader` does."""
    page = partial(signed_transactions, before_seq=query.before, limit=query.limit)
    rows = await _read(caller.context, page)
    listed = [
        LedgerTransaction(payment=row.payment_id, tx_hash=row.tx_id, cbor=row.cbor.hex())
        for row in rows
        if caller.context.has_noted(row.seq, row.account)  # no proof is shown before
    ]
    return JsonResponse(Transactions(transactions=listed, cursor=query.next_of([row.seq for row in rows])))


async def _read(context: AgentContext, read: Callable[[Connection], T]) -> T:
    """Run a long read of the ledger in another thread, on one consistent state."""

    def work() -> T:
        with context.readers.snapshot() as conn:
            return read(conn)

    return await run_in_threadpool(work)


@router.get(
    "/balance",
    summary="Show the balance of every account, and that they sum to zero",
    responses=gives(Balances, 200),
)
async def balance(caller: Reader, query: Annotated[EntryFilter, Query()]) -> JsonResponse:
    """wallet + held is what the chain shows at our address if nothing is in flight.

    With filters, it sums the selected postings. With `until` alone, that is the balance at that time.
    """
    only = query.selection(caller)
    if only == journal.EVERYTHING:
        return JsonResponse(Balances.of(journal.balances(caller.context.conn)))
    return JsonResponse(Balances.of(await _read(caller.context, partial(journal.balances, only=only))))


@router.get("/spend", summary="Show what left the wallet", responses=gives(Spending, 200))
async def spend(caller: Reader, query: Annotated[SpendQuery, Query()]) -> JsonResponse:
    """Over the whole history, the totals are the deposits minus what the chain shows at our address.

    A payment counts once it is confirmed. A cancelled one counts with its fee alone. What a rollback reversed is
    subtracted. `paid` went to merchants, including for prepaid balances; `sent` are the operator's transfers.
    """
    context, keys, only = caller.context, query.keys, query.selection(caller)
    rows, last_id = await _read(context, lambda conn: (journal.spend(conn, keys, only), journal.last_id(conn)))
    return JsonResponse(Spending.of(keys, rows, context.config, last_id))


@router.get("/refusals", summary="List refused purchases, newest first", responses=gives(Refusals, 200))
async def refused(caller: Reader, query: Annotated[RefusalPage, Query()]) -> JsonResponse:
    """A purchase was refused by a limit, a rule, a lack of money or a person, or before there was a payment.

    `at` is when it was refused. Errors that may simply be tried again are not recorded.
    """
    config, only = caller.context.config, caller.selection(query)
    page = partial(
        operator_log.refusals_page, only=only, code=query.code, before_seq=query.before, limit=query.limit
    )
    rows = await _read(caller.context, page)
    return JsonResponse(
        Refusals(
            refusals=[LedgerRefusal.of(row, config) for row in rows],
            cursor=query.next_of([row.seq for row in rows]),
        )
    )


@router.get("/report", summary="Report a month of the ledger", responses=gives(MonthReport, 200))
async def report(request: Request, caller: Reader, query: Annotated[MonthQuery, Query()]) -> JsonResponse:
    """Balances at both ends of the month, what changed them, spend, refusals and top-ups."""
    records: MonthRecords = request.app.state.months
    record = await _read(caller.context, partial(records.read, month=query.month))
    return JsonResponse(MonthReport.of(query.month, record, caller.context.config))


@router.get(
    "/verify",
    summary="Verify the ledger",
    responses=gives(VerifyReport, 200),
    response_class=StreamingResponse,
)
async def verified(caller: Reader, query: Annotated[VerifyQuery, Query()]) -> StreamingResponse:
    """Checks every row, which can take minutes. Findings are sent as they are found."""
    earlier_head = None if query.head is None else parse_head(query.head)
    reports: list[VerifyReport] = []
    answer = await _streamed(caller, _report(caller.context, earlier_head, reports), "application/json")
    if earlier_head is None:  # with one that a caller made up, anybody could raise the alert
        answer.background = BackgroundTask(_note_verified, caller.context, reports)
    return answer


async def _note_verified(context: AgentContext, reports: Sequence[VerifyReport]) -> None:
    for report in reports:  # none if the client hung up
        await note_check(context, "payagent ledger verify", report.found)


@router.get(
    "/export",
    summary="Export the ledger of a period, with opening and closing balances",
    responses=gives(Entries, 200)
    | {
        200: {
            "description": "The export.",
            "content": {kind.partition(";")[0]: {} for kind in _MEDIA_TYPES.values()},
        }
    },
    response_class=StreamingResponse,
)
async def exported(caller: Reader, query: Annotated[ExportQuery, Query()]) -> StreamingResponse:
    """Oldest first, and all from one consistent state."""
    only = query.selection(caller)
    return await _streamed(caller, _export(caller.context, only, query.format), _MEDIA_TYPES[query.format])


def _export(context: AgentContext, only: Selection, form: Format) -> Generator[str]:
    with context.readers.snapshot() as conn:
        yield from export(statement(conn, only, context.config.network.name), form)


@router.get(
    "/snapshot",
    summary="Copy ledger.db as it is now, in one file",
    responses=gives_as("An SQLite database.", _SQLITE, {}),
    response_class=StreamingResponse,
)
async def snapshot(caller: Operator) -> StreamingResponse:
    """The copy is complete before its first byte is sent."""
    return await _streamed(caller, _copy(caller.context), _SQLITE)


def _copy(context: AgentContext) -> Generator[bytes]:
    with context.readers.copied() as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _report(context: AgentContext, earlier_head: Head | None, reports: list[VerifyReport]) -> Generator[str]:
    """One JSON object in pieces. Its end is also added to `reports`.

    An empty line at each step of progress keeps the client from timing out.
    """
    config = context.config
    checked: Counter[str] = Counter()
    found = 0
    head: Head | None = None
    yield '{"findings":['
    with context.readers.audited() as conn:
        for result in verify(conn, Owner(config.own, config.network), earlier_head):
            if isinstance(result, AuditFinding):
                found += 1
                if found <= FINDINGS_MAX:
                    yield ("," if found > 1 else "") + to_json(LedgerFinding.model_validate(result))
            elif isinstance(result, Head):
                head = result
            else:
                checked[result.table] = result.rows
                yield "\n"
    report = VerifyReport(findings=[], clean=not found, found=found, head=str(head), checked=checked)
    reports.append(report)
    yield to_json(report).removeprefix('{"findings":[')


class _Streamed(StreamingResponse):
    """An answer that is read in other threads, piece by piece. Its resources are closed in such a thread too,
    because closing may wait for helper processes when the client has disconnected.
    """

    def __init__(self, content: Iterator[str | bytes], pieces: Generator[str | bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await run_in_threadpool(_close, self._pieces)


async def _streamed(caller: Caller, pieces: Generator[AnyStr], media_type: str) -> StreamingResponse:
    """Sent while the token is valid. If nothing can be read, the answer is still a problem."""
    first = await run_in_threadpool(lambda: list(islice(pieces, 2)))
    return _Streamed(caller.while_token_is_valid(chain(first, pieces)), pieces, media_type)


def _close(pieces: Generator[str | bytes]) -> None:
    """Close the reader. If payagent stops, another thread may still use it; it then ends with the process."""
    with suppress(ValueError):
        pieces.close()
