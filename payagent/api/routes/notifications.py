"""/v1/notifications: the targets of notifications, what each was sent, a replay, a test, and Telegram's chats.

Never: shows a URL or a secret of a target; shows a code twice.
"""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from payagent.agent.operator.notifier import Notifier
from payagent.agent.operator.telegram import TelegramTarget
from payagent.api.http.problems import JsonResponse
from payagent.api.models.notifications import (
    Chat,
    Chats,
    NotificationDeliveries,
    NotificationDelivery,
    NotificationTarget,
    NotificationTargets,
    NotificationTest,
    Pairing,
    UnpairChat,
)
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import Operator, Reader, sent
from payagent.api.routes.params import Page
from payagent.core.problems import Refused
from payagent.store.rows import notifications
from payagent.store.rows.notifications import DeliveryState

TargetName = Annotated[str, Path(description="The target's name in the config.")]
DeliveryId = Annotated[str, Path(description="As returned by /v1/notifications/deliveries.")]

router = APIRouter(prefix="/v1/notifications", tags=["notifications"])


class DeliveryFilter(Page):
    """Filters of a page of deliveries."""

    target: Annotated[str | None, Field(description="A target's name.")] = None
    state: DeliveryState | None = None


@router.get("", summary="List the targets of notifications", responses=gives(NotificationTargets, 200))
async def targets(request: Request, caller: Reader) -> JsonResponse:
    """In the order of the config, with what waits for each."""
    context = caller.context
    notifiers: Mapping[str, Notifier] = request.app.state.notifiers
    states = await run_in_threadpool(lambda: [notifications.state_of(context.conn, name) for name in notifiers])
    shown = [NotificationTarget.of(one, state) for one, state in zip(notifiers.values(), states, strict=True)]
    return JsonResponse(NotificationTargets(notifications=shown))


@router.get(
    "/deliveries",
    summary="List what targets were sent, newest first",
    responses=gives(NotificationDeliveries, 200),
)
async def deliveries(caller: Reader, query: Annotated[DeliveryFilter, Query()]) -> JsonResponse:
    """A delivery is retried for a day, and then given up."""
    context = caller.context
    rows = await run_in_threadpool(
        lambda: notifications.page(
            context.conn, target=query.target, state=query.state, before_seq=query.before, limit=query.limit
        )
    )
    shown = [NotificationDelivery.model_validate(row) for row in rows]
    return JsonResponse(NotificationDeliveries(deliveries=shown, cursor=query.next_of([row.seq for row in rows])))


@router.post(
    "/deliveries/{delivery_id}/replay",
    summary="Send a delivery again",
    responses=gives(NotificationDelivery, 200),
)
async def replay(request: Request, caller: Operator, delivery_id: DeliveryId) -> JsonResponse:
    """It is due at once, under the same id, and retried for a day. Refused with 404 if its target is not in the
    config."""
    row = notifications.delivery(caller.context.conn, delivery_id)
    if row is None:
        raise Refused("not_found", f"there is no delivery {delivery_id[:80]!r}")
    await _notifier(request, row.target).replay(row.id)
    again = notifications.delivery(caller.context.conn, row.id)
    return JsonResponse(NotificationDelivery.model_validate(again or row))


@router.post("/{name}/test", summary="Send a test to a target", responses=gives(NotificationTest, 200))
async def test(request: Request, _caller: Operator, name: TargetName) -> JsonResponse:
    """It is sent once, whatever the target's filter, and answers when the target has."""
    test_id, problem = await _notifier(request, name).test()
    return JsonResponse(NotificationTest(id=test_id, problem=problem))


def _notifier(request: Request, name: str) -> Notifier:
    found: Notifier | None = request.app.state.notifiers.get(name)
    if found is None:
        raise Refused("not_found", f"no target of notifications is called {name[:80]!r}")
    return found


@router.post("/{name}/pair", summary="Make a code that pairs a chat", responses=gives(Pairing, 200))
async def pair(name: TargetName, request: Request, caller: Operator) -> JsonResponse:
    """Whoever sends `code` to the bot first, within ten minutes, is told everything and decides on approvals. An
    earlier code is void. Five wrong codes void this one."""
    code = _telegram(request, name).new_code(caller.app.id)
    return JsonResponse(Pairing(code=code.text, expires_at=code.expires_at_ms))


@router.get("/{name}/chats", summary="List paired chats", responses=gives(Chats, 200))
async def every_chat(name: TargetName, request: Request, _caller: Operator) -> JsonResponse:
    """In the order of their pairing."""
    return _listed(_telegram(request, name))


@router.post(
    "/{name}/unpair", summary="Unpair a chat", responses=gives(Chats, 200), openapi_extra=takes(UnpairChat)
)
async def unpair(
    name: TargetName, request: Request, caller: Operator, order: Annotated[UnpairChat, sent(UnpairChat)]
) -> JsonResponse:
    """Applies at once: the chat is told nothing more, and its buttons decide nothing."""
    telegram = _telegram(request, name)
    await telegram.unpair(order.chat, caller.app.id)
    return _listed(telegram)


def _telegram(request: Request, name: str) -> TelegramTarget:
    """The target of this name. Refused: `not_found`."""
    notifier: Notifier | None = request.app.state.notifiers.get(name)
    if notifier is None or not isinstance(notifier.target, TelegramTarget):
        raise Refused("not_found", f"no target of the kind telegram is called {name[:80]!r}")
    return notifier.target


def _listed(telegram: TelegramTarget) -> JsonResponse:
    rows = [Chat(chat=one.chat_id, user=one.user_id, paired_at=one.paired_at_ms) for one in telegram.paired()]
    return JsonResponse(Chats(chats=rows))
