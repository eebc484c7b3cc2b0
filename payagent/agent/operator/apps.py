"""Adds apps, issues new tokens and revokes apps. An event records who did it.

Never: sees a token (api makes it, and passes on its hash).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from payagent.agent.context import AgentContext
from payagent.agent.operator.limits import origin_of, write_limits
from payagent.agent.topups.orders import stop
from payagent.core.policy import Scope, Window
from payagent.core.problems import Refused
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, topups
from payagent.store.rows.apps import AppRow, TokenRow


@dataclass(frozen=True, slots=True)
class NewApp:
    """The app that an operator adds. `merchants` are names in the config; `most_units` are of `asset`."""

    name: str
    scopes: frozenset[str]
    merchants: tuple[str, ...] | None
    assets: frozenset[str] | None
    asset: str
    most_units: Mapping[Window, int]
    expires_at_ms: int | None


async def add_app(context: AgentContext, by: AppRow, new: NewApp, token_hash: str) -> AppRow:
    """Add an app with its token and its own limits.

    Refused: `already_exists`; `forbidden` for scopes that `by` lacks; `not_found`; `bad_request` if it expired.
    """
    _require_no_more(new.scopes, by)
    origins = None
    if new.merchants is not None:
        origins = frozenset(origin_of(context, name) for name in new.merchants)
    app = AppRow(context.ports.new_id("app"), new.name, new.scopes, origins, new.assets)
    now_ms = context.ports.clock.now_ms()
    _require_ahead(new.expires_at_ms, now_ms)

    def job(unit: Unit) -> None:
        if apps.by_name(unit.conn, new.name) is not None:
            raise Refused("already_exists/app", f"the name {new.name!r} is taken; names are never reused")
        if apps.by_id(unit.conn, new.name) is not None:
            raise Refused("already_exists/app", f"{new.name!r} is the id of another app")
        apps.add(unit, app, by.id, now_ms)
        apps.give_token(unit, app.id, token_hash, new.expires_at_ms, by.id, now_ms)
        write_limits(unit, Scope(app.id), new.asset, new.most_units, by.id, now_ms)

    await context.write("app", job)
    return app


async def renew_token(
    context: AgentContext, by: AppRow, name: str, token_hash: str, expires_at_ms: int | None
) -> AppRow:
    """Issue a new token for an app; the previous one ends at once. Refused: `not_found`, `forbidden`."""
    app, now_ms = apps.find(context.conn, name), context.ports.clock.now_ms()
    _require_no_more(app.scopes, by)
    if not app.scopes:
        raise Refused("forbidden", f"the app {app.name} is payagent's own and cannot be changed")
    _require_ahead(expires_at_ms, now_ms)
    await context.write(
        "app", lambda unit: apps.give_token(unit, app.id, token_hash, expires_at_ms, by.id, now_ms)
    )
    return app


async def revoke(context: AgentContext, by: AppRow, name: str) -> AppRow:
    """End the app's token at once. Its payments go on to their end; its top-ups buy nothing more.

    Refused: `not_found`; `forbidden` for an app with scopes that `by` lacks, and for `by` itself, which should get
    a new token instead.
    """
    app = apps.find(context.conn, name)
    if app.id == by.id:
        detail = f"this request uses the app's own token; replace that with `payagent app rotate-token {app.name}`"
        raise Refused("forbidden", detail)
    _require_no_more(app.scopes, by)

    def job(unit: Unit, now_ms: int) -> None:
        apps.revoke(unit, app.id, by.id, now_ms)
        for topup in topups.open_of_app(unit.conn, app.id):
            stop(unit, context, topup, Refused("topup_stopped/app_revoked", "its token was revoked"), by.id)

    open_topups = topups.open_of_app(context.conn, app.id)
    await context.write_at("app", job)
    for topup in open_topups:
        context.changes.notify(topup.id)
    return app


def all_apps(context: AgentContext) -> list[tuple[AppRow, TokenRow | None]]:
    """All apps that ever existed, with their last tokens."""
    return [(app, apps.last_token(context.conn, app.id)) for app in apps.all_apps(context.conn)]


def _require_no_more(scopes: frozenset[str], by: AppRow) -> None:
    """Refuse to issue or end a token for scopes that `by` itself lacks."""
    if missing := sorted(scopes - by.scopes):
        raise Refused(
            "forbidden",
            f"a token cannot grant or revoke a scope that it lacks: {', '.join(missing)}",
            needs=missing[0],
        )


def _require_ahead(expires_at_ms: int | None, now_ms: int) -> None:
    if expires_at_ms is not None and expires_at_ms <= now_ms:
        raise Refused("bad_request", "expires_at is in the past", key="expires_at")
