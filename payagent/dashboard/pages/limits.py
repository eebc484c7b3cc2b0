"""Every limit that is in force, and how to change it.

Lowering acts at once. What lets more out is confirmed in the terminal: raising, going back to the config file, and
a first limit of a token, which may then be spent at all.

Never: SQL; decides about a payment.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from payagent.core.money import LOVELACE
from payagent.core.policy import Window
from payagent.core.problems import Refused
from payagent.dashboard.bars import WINDOWS, limit_bar
from payagent.dashboard.fields import units_of
from payagent.dashboard.in_process import ApiRefusedError
from payagent.dashboard.text import amount_text
from payagent.dashboard.visit import MenuEntry, Visit, form, page

EDITED = ("app", "merchant", "asset", "limit", "amount")
GROUPS = (("wallet", "The wallet"), ("apps", "Apps"), ("merchants", "Merchants"))


async def show(visit: Visit, refused: ApiRefusedError | None = None) -> Response:
    typed = visit.form or visit.request.query_params
    answer = await visit.api.get("/v1/limits")
    in_ada_first = sorted(answer["limits"], key=lambda one: bool(one["asset"] != LOVELACE))
    limits = [{**limit_bar(one), "query": _query(one)} for one in in_ada_first]
    merchants = (await visit.api.get("/v1/merchants"))["merchants"]
    apps = (await visit.api.get("/v1/apps"))["apps"]
    given = {name: typed[name] for name in EDITED if name in typed}
    edited = {"limit": Window.DAY.value, "asset": LOVELACE} | given
    return await visit.page(
        "limits.html",
        refused,
        sections=[(name, title, [one for one in limits if _group(one) == name]) for name, title in GROUPS],
        signer=answer["signer"],
        approval_above=answer["approval_above"],
        edited=edited,
        present=_in_force(answer["limits"], edited),
        windows=WINDOWS,
        apps=[one["name"] for one in apps if "pay" in one["scopes"] and one["active"]],
        merchants=[one["name"] for one in merchants],
    )


def _group(limit: Mapping[str, Any]) -> str:
    return "apps" if limit["app"] else "merchants" if limit["merchant"] else "wallet"


def _query(limit: Mapping[str, Any]) -> dict[str, str]:
    """What fills the form with this limit."""
    return {name: limit[name] for name in ("app", "merchant", "asset", "limit") if limit[name]}


def _in_force(limits: Sequence[Mapping[str, Any]], typed: Mapping[str, str]) -> int | None:
    """The most of the limit that a form names; None if there is none."""
    wanted = tuple(typed.get(name) or None for name in ("app", "merchant", "asset", "limit"))
    found = (one for one in limits if (one["app"], one["merchant"], one["asset"], one["limit"]) == wanted)
    return next((int(one["most"]) for one in found), None)


async def set_limit(visit: Visit) -> Response:
    typed, tokens = visit.form, visit.renderer.facts["tokens"]
    asset, window = typed.get("asset", LOVELACE), typed.get("limit", "")
    is_reset = typed.get("act") == "reset"
    most = None if is_reset else units_of(typed, "amount", asset, tokens)
    if most is None and not is_reset:
        raise Refused("amount_invalid", "the amount is empty", key="amount")
    body = {name: typed[name] for name in ("app", "merchant") if typed.get(name)}
    order = {**body, "asset": asset, "limits": {window: most}}
    then = "as in the config file" if most is None else f"{amount_text(most, asset, tokens)} at most"
    whose = " at ".join(f"{kind} {name}" for kind, name in body.items()) or "the wallet"
    try:
        await visit.api.post("/v1/limits", {**order, "only_lower": True})
        return visit.done("/ui/limits", f"{whose}, {_words(window)}: {then} from now on.")
    except ApiRefusedError as refused:
        if refused.problem["code"] != "limit_not_lower":
            raise
        present = refused.problem["now"]
        if is_reset:
            in_config = refused.problem["in_config"]
            then += (
                ": no such limit" if in_config is None else f": {amount_text(in_config, asset, tokens)} at most"
            )
    facts = (
        ("whose", whose),
        ("limit", _words(window)),
        ("now", "none" if present is None else f"{amount_text(present, asset, tokens)} at most"),
        ("then", then),
    )
    title = "Revert a limit to the config file" if is_reset else "Raise a limit"
    return visit.confirm_in_terminal(title, facts, "/ui/limits", "/v1/limits", order, None)


def _words(window: str) -> str:
    return WINDOWS[Window(window)].lower() if window in WINDOWS else window


PAGES = [
    page(
        "/ui/limits",
        show,
        entry=MenuEntry(
            "Limits",
            (2, 3),
            '<path d="M2.3 11.8a5.9 5.9 0 1 1 11.4 0M8 10.6l2.7-3.7"/>',
        ),
    ),
    form("/ui/limits", set_limit, refused_on=show),
]
