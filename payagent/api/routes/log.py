"""/v1/log and /v1/alerts: what operators changed, which requests were refused, and what needs attention now.

Never: changes anything.
"""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from payagent.api.http.problems import JsonResponse
from payagent.api.models.log import Alert, Alerts, LogEntry, LogPage
from payagent.api.models.openapi import gives
from payagent.api.routes.auth import Reader
from payagent.api.routes.params import Page, SelectionFilter
from payagent.core.operator_log import LogKind
from payagent.store.rows import alerts, apps, operator_log

router = APIRouter(tags=["log"])


class LogFilter(SelectionFilter, Page):
    """Where the log starts, and what it lists."""

    kind: Annotated[LogKind | None, Field(description="Only changes of this kind.")] = None
    code: Annotated[str | None, Field(description="Only refusals with this code.")] = None
    by: Annotated[str | None, Field(description="Only what this app (id or name) did or was refused.")] = None


@router.get("/v1/log", summary="List changes and refusals, newest first", responses=gives(LogPage, 200))
async def log(caller: Reader, query: Annotated[LogFilter, Query()]) -> JsonResponse:
    """Changes of limits, apps, merchants and the config, pauses, decisions on approvals, and refused requests."""
    context, only = caller.context, caller.selection(query)
    by = None if query.by is None else caller.app_named(query.by, "by").id
    rows = await run_in_threadpool(
        lambda: operator_log.page(
            context.conn,
            only,
            code=query.code,
            before_seq=query.before,
            limit=query.limit,
            kind=query.kind,
            by=by,
        )
    )
    names: dict[str | None, str] = {app.id: app.name for app in apps.all_apps(context.conn)}
    return JsonResponse(
        LogPage(
            log=[LogEntry.of(row, names, context.config) for row in rows],
            cursor=query.next_of([row.seq for row in rows]),
        )
    )


@router.get("/v1/alerts", summary="List the alerts that are not cleared", responses=gives(Alerts, 200))
async def raised(caller: Reader) -> JsonResponse:
    """Oldest first. docs/reference/alerts.md explains each kind."""
    return JsonResponse(
        Alerts(alerts=[Alert.model_validate(row) for row in alerts.all_raised(caller.context.conn)])
    )
