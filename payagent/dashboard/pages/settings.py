"""Health, providers, sessions, targets of notifications and the version.

Never: SQL; writes the config.
"""

import re

from starlette.responses import Response
from starlette.types import Message

from payagent.core.timestamps import iso_time
from payagent.dashboard.visit import MenuEntry, Visit, form, page

_COUNTER = re.compile(
    r'^payagent_provider_(requests|failures)_total\{provider="(?P<name>[^"]*)"\} (?P<count>[0-9]+)$', re.M
)

DELIVERIES = 8

GOOD = {
    "chain": "the newest block is fresh",
    "ledger": "it can be read, and the disk has room",
    "sweeps": "the jobs run on time",
    "signer": "the process with the key answers",
    "pause": "signing is on",
    "fleet": "an account is held, and this daemon's leases are fresh",
}
"""What a check that passes says."""


NAMES = {"sweeps": "background jobs"}
"""What people call a check, where the API's name is not a word for it."""


async def show(visit: Visit) -> Response:
    readiness = await visit.api.get("/readyz")
    apps = {one["id"]: one["name"] for one in (await visit.api.get("/v1/apps"))["apps"]}
    counters = await _provider_counters(visit)
    targets = (await visit.api.get("/v1/notifications"))["notifications"]
    sent = await visit.api.get("/v1/notifications/deliveries", limit=DELIVERIES)
    wallet = await visit.api.get("/v1/wallet")
    return await visit.page(
        "settings.html",
        checks=[
            {
                "name": NAMES.get(name, name),
                "ok": said == "ok",
                "says": GOOD.get(name, "") if said == "ok" else said,
            }
            for name, said in readiness["checks"].items()
        ],
        providers=[
            {"name": name, "ok": said == "ok", "says": said, **counters.get(name, {"requests": 0, "failures": 0})}
            for name, said in readiness["providers"].items()
        ],
        sessions=[
            {
                "app": apps.get(one.app_id, one.app_id),
                "since": iso_time(one.started_at_ms),
                "device": one.device,
                "until": iso_time(visit.sessions.ends_at_ms(one)),
                "is_own": one is visit.session,
            }
            for one in visit.sessions.all()
        ],
        targets=targets,
        deliveries=sent["deliveries"],
        daemons=wallet.get("daemons", []),
        accounts=wallet.get("accounts", []),
    )


async def _provider_counters(visit: Visit) -> dict[str, dict[str, int]]:
    """Requests to each provider since the daemon's start, and how many failed, from /metrics."""
    pieces = []

    async def take(message: Message) -> None:
        pieces.append(message.get("body", b""))

    await visit.api.stream("/metrics", "", visit.request.receive, take)
    counters: dict[str, dict[str, int]] = {}
    for found in _COUNTER.finditer(b"".join(pieces).decode()):
        counters.setdefault(found["name"], {})[found[1]] = int(found["count"])
    return counters


async def end_others(visit: Visit) -> Response:
    """Sign out every other browser."""
    others = [one for one in visit.sessions.all() if one is not visit.session]
    for one in others:
        visit.sessions.end(one)
    await visit.note("dashboard_closed", {"via": "dashboard", "by": visit.app.id, "others": len(others)})
    return visit.done("/ui/settings", f"{len(others)} other session{'s' if len(others) != 1 else ''} signed out.")


async def test_target(visit: Visit) -> Response:
    name = visit.request.path_params["name"]
    problem = (await visit.api.post(f"/v1/notifications/{name}/test"))["problem"]
    notice = f"{name} took the test." if problem is None else f"{name} did not take the test: {problem}."
    return visit.done("/ui/settings", notice)


async def replay(visit: Visit) -> Response:
    delivery_id = visit.request.path_params["delivery_id"]
    sent = await visit.api.post(f"/v1/notifications/deliveries/{delivery_id}/replay")
    return visit.done("/ui/settings", f"{sent['type']} is sent to {sent['target']} again.")


PAGES = [
    page(
        "/ui/settings",
        show,
        entry=MenuEntry(
            "Settings and health",
            (4, 1),
            '<path d="M8 5.9a2.1 2.1 0 1 0 0 4.2 2.1 2.1 0 0 0 0-4.2zM8 1.9v1.8M8 12.3v1.8M1.9 8h1.8M12.3 '
            '8h1.8M3.7 3.7 5 5M11 11l1.3 1.3M12.3 3.7 11 5M5 11l-1.3 1.3"/>',
        ),
    ),
    form("/ui/settings/end-others", end_others),
    form("/ui/settings/targets/{name}/test", test_target),
    form("/ui/settings/deliveries/{delivery_id}/replay", replay),
]
