"""Apps, the clients of payagent: their scopes, what they may pay, and the one valid token of each.

An event records each app, token and revocation, and by which app. An app never changes, except for its token.
Issuing a token revokes the one before, and an ended token never becomes valid again. Setting the clock back
revives no token that had expired when a hold was last placed.
Never: sees a token (it looks up the hash).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from payagent.core.problems import Refused
from payagent.store.db.sql import exists, find_all, find_one
from payagent.store.db.unit import Connection, Unit
from payagent.store.rows import limit_counters, writes


@dataclass(frozen=True, slots=True)
class AppRow:
    """An app."""

    id: str
    name: str
    scopes: frozenset[str]
    merchants: frozenset[str] | None  # the origins that it may pay; None: any that the wallet may pay
    assets: frozenset[str] | None  # the assets that it may pay in; None: any that the wallet may pay in

    @property
    def sees_all(self) -> bool:
        """Apps that may read the ledger or operate the wallet see what other apps do."""
        return bool(self.scopes & {"read", "operate"})

    def require_may_call(self, origin: str) -> None:
        """Refused: `merchant_not_allowed`."""
        if self.merchants is not None and origin not in self.merchants:
            raise Refused(
                "merchant_not_allowed",
                f"the app {self.name} may not pay {origin}",
                fix="The app is bound to other merchants. Use another app.",
                origin=origin,
            )

    def require_may_pay(self, origin: str, asset: str) -> None:
        """Refused: `merchant_not_allowed`, `asset_not_allowed`."""
        self.require_may_call(origin)
        if self.assets is not None and asset not in self.assets:
            raise Refused("asset_not_allowed", f"the app {self.name} may not pay in {asset}", asset=asset)


@dataclass(frozen=True, slots=True)
class TokenRow:
    """The last token of an app, and when it is or was valid."""

    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None

    def is_good(self, conn: Connection, now_ms: int) -> bool:
        return self.revoked_at_ms is None and not _has_expired(conn, self.expires_at_ms, now_ms)


_APP_COLUMNS = "a.id, a.name, a.scopes, a.merchants, a.assets"
_APP = f"SELECT {_APP_COLUMNS} FROM apps a"  # noqa: S608  our own names


def _has_expired(conn: Connection, expires_at_ms: int | None, now_ms: int) -> bool:
    """Whether a token has expired, by our clock or by the limits' clock at the last hold (never goes back)."""
    return expires_at_ms is not None and expires_at_ms <= max(now_ms, limit_counters.clock_ms(conn, None))


def by_token(conn: Connection, token_hash: str, now_ms: int) -> AppRow | None:
    """The app of this token, if the token is valid now."""
    row = conn.execute(
        f"SELECT {_APP_COLUMNS}, t.expires_at_ms FROM apps a "  # noqa: S608  our own names
        "JOIN tokens t ON t.app_id = a.id WHERE t.hash = ? AND t.revoked_at_ms IS NULL",
        (token_hash,),
    ).fetchone()
    return None if row is None or _has_expired(conn, row[5], now_ms) else _app(*row[:5])


def valid_token_of(conn: Connection, name: str, now_ms: int) -> tuple[AppRow, str]:
    """The app with this name or id, and the hash of its valid token. Refused: `not_found`."""
    app = find(conn, name)
    row = conn.execute("SELECT hash FROM tokens WHERE app_id = ? AND revoked_at_ms IS NULL", (app.id,)).fetchone()
    if row is None or by_token(conn, row[0], now_ms) is None:
        raise Refused("not_found", f"the app {app.name} has no valid token")
    return app, row[0]


def by_id(conn: Connection, app_id: str) -> AppRow | None:
    return find_one(conn, _app, f"{_APP} WHERE a.id = ?", (app_id,))


def require(conn: Connection, app_id: str) -> AppRow:
    """The app with this id. Refused: `not_found`; an authenticated app is always found."""
    app = by_id(conn, app_id)
    if app is None:
        raise Refused("not_found", f"there is no app {app_id[:80]!r}")
    return app


def has_ended(conn: Connection, app_id: str, now_ms: int) -> bool:
    """Whether an app's token is revoked or expired. False for payagent's own apps, which never had one."""
    token = last_token(conn, app_id)
    return token is not None and not token.is_good(conn, now_ms)


def require_let_in(conn: Connection, app_id: str, now_ms: int) -> None:
    """Refused: `unauthorized`, if the token of the calling app has ended."""
    if has_ended(conn, app_id, now_ms):
        raise Refused("unauthorized", "the token was revoked or expired meanwhile")


def find(conn: Connection, name: str) -> AppRow:
    """The app with this name or id. Refused: `not_found`."""
    return by_name(conn, name) or require(conn, name)


def by_name(conn: Connection, name: str) -> AppRow | None:
    return find_one(conn, _app, f"{_APP} WHERE a.name = ?", (name,))


def all_apps(conn: Connection) -> list[AppRow]:
    """All apps that ever existed, oldest first."""
    return find_all(conn, _app, f"{_APP} ORDER BY a.rowid")


def last_token(conn: Connection, app_id: str) -> TokenRow | None:
    """The last token; None for an app that never had one, such as the app of automatic top-ups."""
    return find_one(
        conn,
        TokenRow,
        "SELECT created_at_ms, expires_at_ms, revoked_at_ms FROM tokens WHERE app_id = ? "
        "ORDER BY rowid DESC LIMIT 1",
        (app_id,),
    )


def was_given(conn: Connection, token_hash: str) -> bool:
    """Whether this is, or was, the token of any app."""
    return exists(conn, "SELECT 1 FROM tokens WHERE hash = ?", (token_hash,))


def add(unit: Unit, app: AppRow, by_app: str, now_ms: int) -> None:
    """Add an app without a token: no request can authenticate as it."""
    grants = {
        grant: None if names is None else sorted(names)
        for grant, names in (("scopes", app.scopes), ("merchants", app.merchants), ("assets", app.assets))
    }
    unit.conn.execute(
        "INSERT INTO apps(id, name, scopes, merchants, assets, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)",
        (app.id, app.name, *(None if names is None else " ".join(names) for names in grants.values()), now_ms),
    )
    writes.note(unit, None, "app_added", None, now_ms, {"app": app.id, "name": app.name, **grants, "by": by_app})


def ensure_own(unit: Unit, app_id: str, name: str, now_ms: int) -> None:
    """Ensure that one of payagent's own apps exists. It has no token, so no request can authenticate as it."""
    if by_id(unit.conn, app_id) is None:
        add(unit, AppRow(app_id, name, frozenset(), None, None), app_id, now_ms)


def give_token(
    unit: Unit, app_id: str, token_hash: str, expires_at_ms: int | None, by_app: str, now_ms: int
) -> None:
    """Issue a token for an app, and revoke the one before."""
    _end_token(unit, app_id, now_ms)
    unit.conn.execute(
        "INSERT INTO tokens(hash, app_id, created_at_ms, expires_at_ms) VALUES (?, ?, ?, ?)",
        (token_hash, app_id, now_ms, expires_at_ms),
    )
    detail = {"app": app_id, "expires_at_ms": expires_at_ms, "by": by_app}
    writes.note(unit, None, "token_issued", None, now_ms, detail)


def revoke(unit: Unit, app_id: str, by_app: str, now_ms: int) -> None:
    """Revoke an app's token for good, if it has a valid one."""
    if _end_token(unit, app_id, now_ms):
        writes.note(unit, None, "app_revoked", None, now_ms, {"app": app_id, "by": by_app})


def _end_token(unit: Unit, app_id: str, now_ms: int) -> bool:
    return (
        unit.conn.execute(
            "UPDATE tokens SET revoked_at_ms = ? WHERE app_id = ? AND revoked_at_ms IS NULL", (now_ms, app_id)
        ).rowcount
        > 0
    )


def add_with_token(
    unit: Unit,
    app_id: str,
    name: str,
    token_hash: str,
    scopes: Iterable[str],
    now_ms: int,
    *,
    by_app: str | None = None,
) -> None:
    """Add an app with only the wallet's own limits, and a token that never expires. By None: by itself."""
    by_app = by_app or app_id
    add(unit, AppRow(app_id, name, frozenset(scopes), None, None), by_app, now_ms)
    give_token(unit, app_id, token_hash, None, by_app, now_ms)


def _app(app_id: str, name: str, scopes: str, merchants: str | None, assets: str | None) -> AppRow:
    return AppRow(app_id, name, frozenset(scopes.split()), _names(merchants), _names(assets))


def _names(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(text.split())
