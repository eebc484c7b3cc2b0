"""Channels: what is locked, what was promised, and what can be lost. Locking is confirmed in the terminal.

Never: SQL; imports the modules of channels before the API has answered that they are on.
"""

from starlette.responses import Response

from payagent.core.money import LOVELACE, NO_TOKENS
from payagent.dashboard.fields import read_units
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, form, page

_RISK = (
    ("can be lost", "all of it: nobody has audited the validator that holds it"),
    ("the rest", "returns after you close the channel, once the merchant's withdraw delay is over"),
)


async def show(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    listed = await visit.api.get("/v1/channels", cursor=visit.request.query_params.get("cursor"))
    from payagent.core.channel import PHASES_IN_WORDS

    return await visit.page(
        "channels.html",
        refused,
        listed=listed,
        words=PHASES_IN_WORDS,
        merchants=(await visit.api.get("/v1/merchants"))["merchants"],
    )


async def begin(visit: Visit) -> Response:
    """Keep an opening until the terminal confirms it."""
    units = read_units(visit.form.get("amount", ""), LOVELACE, NO_TOKENS)
    merchant, text = visit.form.get("merchant", ""), amount_text(units)
    return visit.confirm_in_terminal(
        f"Lock {text} in a channel at {merchant}",
        (("merchant", merchant), ("locks", f"{text}, and pays a fee"), *_RISK),
        "/ui/channels",
        "/v1/channels",
        {"merchant": merchant, "amount": str(units)},
        visit.order,
    )


async def add(visit: Visit) -> Response:
    """Keep an addition until the terminal confirms it."""
    units = read_units(visit.form.get("amount", ""), LOVELACE, NO_TOKENS)
    text, path = amount_text(units), f"/v1/channels/{visit.request.path_params['channel_id']}"
    channel = await visit.api.get(path)
    return visit.confirm_in_terminal(
        f"Lock {text} more at {channel['merchant']}",
        (("channel", channel["id"]), ("locks", f"{text}, and pays a fee"), *_RISK),
        "/ui/channels",
        f"{path}/add",
        {"amount": str(units)},
        visit.order,
    )


async def close(visit: Visit) -> Response:
    await visit.api.post(f"/v1/channels/{visit.request.path_params['channel_id']}/close", key=visit.order)
    return visit.done("/ui/channels", "The channel pays no more calls. What the merchant does not claim returns.")


PAGES = [
    page(
        "/ui/channels",
        show,
        entry=MenuEntry(
            "Channels",
            (2, 4),
            '<path d="M2.5 5.6h8.6M8.6 3l2.6 2.6-2.6 2.6M13.5 10.4H4.9M7.4 7.8l-2.6 2.6L7.4 13"/>',
        ),
    ),
    form("/ui/channels", begin, refused_on=show),
    form("/ui/channels/{channel_id}/add", add, refused_on=show),
    form("/ui/channels/{channel_id}/close", close, refused_on=show),
]
