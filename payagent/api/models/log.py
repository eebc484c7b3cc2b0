"""The log of changes and refusals, and the alerts. Never: I/O."""

import json
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, Field

from payagent.agent.base.config import AgentConfig
from payagent.api.models.base import Shown, Time
from payagent.api.models.payments import shown_request
from payagent.store.rows.operator_log import LoggedEvent


class LogEntry(BaseModel):
    """A change by an operator, a refusal, or a decision on an approval.

    `by`: the app that made the change; null if none did. `app` and `merchant`: which ones it is about. `request`:
    method and path of the refused request, without its query. Apps and merchants are named as in the config, or by
    id and origin. `via` in `detail` is "dashboard" if the change was made there.
    """

    seq: int
    at: Time
    event: str
    by: str | None
    app: str | None
    merchant: str | None
    request: str | None
    payment: str | None
    detail: dict[str, object]

    @classmethod
    def of(cls, row: LoggedEvent, app_names: Mapping[str | None, str], config: AgentConfig) -> Self:
        detail: dict[str, Any] = json.loads(row.detail)
        detail.pop("received", None)  # the 402 itself: too long for a list
        app = detail.pop("app", None) or row.app_id
        by = detail.pop("by", None)
        if row.event == "unfrozen":
            app, by = None, app
        merchant = detail.pop("merchant", None) or detail.pop("origin", None) or row.origin
        return cls(
            seq=row.seq,
            at=row.at_ms,
            event=row.event,
            by=app_names.get(by, by),
            app=app_names.get(app, app),
            merchant=config.merchant_name(merchant),
            request=shown_request(detail.pop("request", None) or row.request),
            payment=row.payment_id,
            detail=detail,
        )


class LogPage(BaseModel):
    log: list[LogEntry]
    cursor: str | None


class Alert(Shown):
    """An alert that is not cleared. `facts`: what it is about."""

    id: str
    kind: str
    subject: str
    at: Time = Field(validation_alias="at_ms")
    facts: dict[str, str]


class Alerts(BaseModel):
    alerts: list[Alert]
