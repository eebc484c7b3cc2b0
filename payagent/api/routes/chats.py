"""/v1/notifications/{name}/pair, /chats and /unpair: which chats a Telegram target tells.

Never: shows a code twice.
"""

from fastapi import APIRouter
from starlette.requests import Request

from payagent.agent.operator.notifier import Notifier
from payagent.agent.operator.telegram import TelegramTarget
from payagent.api.http.problems import JsonResponse
from payagent.api.models.notifications import Chat, Chats, Pairing, UnpairChat
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import Operator
from payagent.api.routes.notifications import TargetName
from payagent.core.problems import Refused

router = APIRouter(prefix="/v1/notifications", tags=["notifications"])


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
async def unpair(name: TargetName, request: Request, caller: Operator) -> JsonResponse:
    """Applies at once: the chat is told nothing more, and its buttons decide nothing."""
    order = UnpairChat.read(await caller.json_body(request))
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
