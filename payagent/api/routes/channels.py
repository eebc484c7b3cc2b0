"""/v1/channels: lists channels, and opens, raises, closes and recovers them.

Never: builds a transaction; imports the modules of channels before they are known to be on.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request

from payagent.api.http.problems import JsonResponse
from payagent.api.models.base import read_key
from payagent.api.models.channels import AddToChannel, ChannelDetails, ChannelsPage, OpenChannel
from payagent.api.models.openapi import gives, takes
from payagent.api.routes.auth import Caller, Operator, Reader, sent
from payagent.api.routes.params import Page, single_header
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.core.channel import Channel

router = APIRouter(prefix="/v1/channels", tags=["channels"])


@router.get("", summary="List channels, newest first", responses=gives(ChannelsPage, 200))
async def page(caller: Reader, query: Annotated[Page, Query()]) -> JsonResponse:
    """Those that hold money, and those that have ended. Refused with 404 where `channels.enabled` is false."""
    _require_on(caller)
    from payagent.store.rows.channels import channels_page

    rows = channels_page(caller.context.conn, query.before, query.limit)
    return JsonResponse(
        ChannelsPage(
            channels=[_details(caller, row) for _, row in rows], next=query.next_of([seq for seq, _ in rows])
        )
    )


@router.post(
    "",
    summary="Open a channel",
    responses=gives(ChannelDetails, 201),
    openapi_extra=takes(OpenChannel),
    status_code=201,
)
async def begin(
    request: Request, caller: Operator, order: Annotated[OpenChannel, sent(OpenChannel)]
) -> JsonResponse:
    """Locks an amount on the terms of the merchant's latest offer. `steps` has the payment that does it.

    With an Idempotency-Key you can repeat the request safely.
    """
    (made,) = await _order(
        caller,
        "open",
        origin=order.merchant,
        units=order.amount,
        key=read_key(single_header(request, "Idempotency-Key")),
    )
    return JsonResponse(made, 201)


@router.post("/recover", summary="Recover channels from the chain", responses=gives(ChannelsPage, 200))
async def recover(caller: Operator) -> JsonResponse:
    """Finds this wallet's channels that the ledger lacks, as after its loss. They can only be closed."""
    return JsonResponse(ChannelsPage(channels=await _order(caller, "recover"), next=None))


@router.get("/{channel_id}", summary="Show a channel", responses=gives(ChannelDetails, 200))
async def one(caller: Reader, channel_id: str) -> JsonResponse:
    """With its 20 newest calls, newest first."""
    _require_on(caller)
    from payagent.store.rows.channels import calls_page, channel

    row = channel(caller.context.conn, channel_id)
    calls = [
        {"payment_id": call.id, "step": "call", "units": call.charged, "state": call.state}
        for call in calls_page(caller.context.conn, row.id, None, 20)
    ]
    return JsonResponse(_details(caller, row, calls=calls))


@router.post(
    "/{channel_id}/add",
    summary="Lock more in a channel",
    responses=gives(ChannelDetails, 200),
    openapi_extra=takes(AddToChannel),
)
async def add(
    request: Request, caller: Operator, channel_id: str, order: Annotated[AddToChannel, sent(AddToChannel)]
) -> JsonResponse:
    """Calls may use it once its payment, the last of `steps`, is confirmed.

    With an Idempotency-Key you can repeat the request safely. Without one, each locks more.
    """
    (raised,) = await _order(
        caller,
        "add",
        channel_id=channel_id,
        units=order.amount,
        key=read_key(single_header(request, "Idempotency-Key")),
    )
    return JsonResponse(raised)


@router.post("/{channel_id}/close", summary="Close a channel", responses=gives(ChannelDetails, 200))
async def close(request: Request, caller: Operator, channel_id: str) -> JsonResponse:
    """It pays no more calls. What the merchant does not claim returns by itself, from `returns_at` on."""
    (closing,) = await _order(
        caller, "close", channel_id=channel_id, key=read_key(single_header(request, "Idempotency-Key"))
    )
    return JsonResponse(closing)


async def _order(caller: Caller, step: str, **asked: object) -> list[ChannelDetails]:
    """Carry out a step, at the daemon that holds its account."""
    _require_on(caller)
    from payagent.store.rows.channels import channel

    return [
        _details(caller, channel(caller.context.conn, made))
        for made in await caller.fleet.order_channel(step, caller.app.id, **asked)
    ]


def _require_on(caller: Caller) -> None:
    """Refused: `not_found` where channels are off."""
    if caller.context.config.channels is None:
        raise Refused(
            "not_found",
            "channels are off (channels.enabled)",
            fix="Set enabled = true in [channels], and restart. See docs/how-to/pay-small-amounts.md first.",
        )


def _details(caller: Caller, row: "Channel", **more: object) -> ChannelDetails:
    from payagent.store.rows.channels import steps_of

    return ChannelDetails.model_validate(
        {
            **asdict(row),
            "merchant": caller.context.config.merchant_name(row.origin),
            "state": row.phase,
            "locked": row.locked,
            "most_lost": row.most_lost,
            "returns_at": row.elapse_at_ms,
            "steps": steps_of(caller.context.conn, row.id),
            **more,
        }
    )
