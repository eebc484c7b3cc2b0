"""Parses request bodies into values: strict JSON, known keys only, every amount a string of digits.

May import: core, dialects, agent's values.
Never: does I/O; accepts an unknown key, because a misspelt limit on money would silently be no limit.
"""

import base64
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from payagent.agent.base.config import AgentConfig, TopupSource
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.agent.operator.apps import NewApp
from payagent.agent.topups.orders import TopupGoal
from payagent.api.http.tokens import TOKEN_PATTERN
from payagent.core import strict_json
from payagent.core.address import Address, parse_address
from payagent.core.bounds import SCOPES, SPLIT_COUNT_MAX
from payagent.core.invoice import Role
from payagent.core.money import LOVELACE, check_supply, parse_asset, parse_count, parse_units
from payagent.core.network import Network
from payagent.core.origin import parse_origin
from payagent.core.policy import Window
from payagent.core.problems import Refused, own_order
from payagent.dialects import HttpResponse, make_response, parse_answer, parse_response

BODY_MAX_BYTES = 256 * 1024
REASON_MAX_CHARS = 300

# the envelope adds two levels around the 402's body, which may be as deep as one sent by itself
_DEPTH_MAX = strict_json.MAX_DEPTH + 2
_APP_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)
_METHOD = re.compile(r"[A-Z]{1,16}", re.ASCII)
_BUYER = ("x-partner", "x-wallet-address")
_PATH = re.compile(r"/[!-~]{0,8191}", re.ASCII)
_PATH_FORM = "a path with its query, in ASCII, from the / on"
_HEX_32 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Fields = dict[str, object]


@dataclass(frozen=True, slots=True)
class TransferBody:
    """A request to send funds out of the wallet. `units` is None for all funds."""

    to: Address
    asset: str
    units: int | None


def read_ask(app_id: str, raw: bytes, idempotency_key: str | None) -> PaymentRequest:
    """Read the body of /v1/payments and /v1/quotes. It contains a 402, so invalid JSON counts as a bad 402."""
    value = strict_json.loads(raw, max_bytes=BODY_MAX_BYTES, max_depth=_DEPTH_MAX)
    body = _fields(value, "the body", ("origin", "response"), ("request", "max_total", "max_total_asset"))
    max_total_units, max_total_asset = _read_most(body)
    response, received = _read_response(body["response"])
    return PaymentRequest(
        app_id=app_id,
        origin=_read_origin(body["origin"]),
        response=response,
        received=received,
        request=_read_request(body["request"]) if "request" in body else None,
        idempotency_key=read_key(idempotency_key),
        max_total_units=max_total_units,
        max_total_asset=max_total_asset,
    )


def _read_most(body: Fields) -> tuple[int | None, str | None]:
    """(the caller's own limit, its asset). An asset of None means the asset of the invoice."""
    if "max_total" not in body and "max_total_asset" in body:
        raise Refused("bad_request", "max_total_asset needs max_total", key="max_total")
    units = _amount(body, "max_total") if "max_total" in body else None
    return units, read_asset(body["max_total_asset"], "max_total_asset") if "max_total_asset" in body else None


_UNANSWERED = 504
"""The status reported when no answer came: a gateway's own status for a timeout (RFC 9110 15.6.5)."""


def read_delivery(raw: bytes) -> tuple[HttpResponse | str, int | None]:
    """(the retry's response, or why no answer came; the transaction's depth when the proof was presented)."""
    body = _fields(_json(raw), "the body", ("status",), ("headers", "body", "body_base64", "unanswered", "depth"))
    depth = body.pop("depth", None)
    if depth is not None and (type(depth) is not int or depth < 0):
        raise Refused("bad_request", "depth must be a whole number from the payment object", key="depth")
    return _read_retry(body), depth


def _read_retry(body: Fields) -> HttpResponse | str:
    """The retry's status, with headers and body as far as reported. Or the reason why no answer came."""
    status = _status(body["status"], "status")
    if (why := _text(body, "unanswered")) is not None:
        if status != _UNANSWERED or len(body) > 2:
            detail = f"unanswered stands beside a status of {_UNANSWERED} alone: an answer came, or none did"
            raise Refused("bad_request", detail, key="unanswered")
        return _one_line(why, "unanswered")
    if "body" in body and "body_base64" in body:
        raise Refused("bad_request", "give either body or body_base64", key="body")
    headers = _read_headers(body.get("headers", {}))
    if "body_base64" in body:
        return parse_answer(status, headers, _read_base64(body["body_base64"], "body_base64"))
    told = body.get("body", "")
    if isinstance(told, str):
        return parse_answer(status, headers, told.encode())
    return HttpResponse(status, {name.lower(): value for name, value in headers}, told)


def read_split(raw: bytes) -> tuple[int, int]:
    """(how many UTxOs, lovelace in each)."""
    body = _fields(_json(raw), "the body", ("count", "lovelace"))
    count = body["count"]
    if type(count) is not int or not 1 <= count <= SPLIT_COUNT_MAX:
        raise Refused("bad_request", f"count must be a whole number from 1 to {SPLIT_COUNT_MAX}", key="count")
    return count, _amount(body, "lovelace", LOVELACE)


def read_transfer(raw: bytes, network: Network) -> TransferBody:
    """Read the destination and the amount: `units` of `asset` (default lovelace), or `"all": true`."""
    body = _fields(_json(raw), "the body", ("address",), ("asset", "units", "all"))
    if ("all" in body) == ("units" in body):
        raise Refused("bad_request", "give either units or all", key="units")
    with own_order(key="address"):
        to = parse_address(body["address"], network)
    if "all" in body:
        if body["all"] is not True or "asset" in body:
            raise Refused("bad_request", "all must be true, without an asset", key="all")
        return TransferBody(to, LOVELACE, None)
    with own_order(key="asset"):
        asset = parse_asset(body.get("asset", LOVELACE))
    return TransferBody(to, asset, _amount(body, "units", asset))


def read_unfreeze(raw: bytes) -> list[str] | None:
    """The transaction ids that the operator has reviewed; None when the key is absent."""
    body = _fields(_json(raw), "the body", (), ("seen",))
    seen = body.get("seen", ())
    if not isinstance(seen, list | tuple) or not all(isinstance(tx, str) and _HEX_32.fullmatch(tx) for tx in seen):
        raise Refused("bad_request", "seen must be a list of transaction ids, each 64 hex digits", key="seen")
    return list(seen) if "seen" in body else None


def read_topup(raw: bytes, terms: AgentConfig) -> tuple[TopupGoal, bool]:
    """(the top-up that is requested, whether it is only a dry run)."""
    body = _fields(_json(raw), "the body", ("merchant", "units"), ("asset", "request", "dry_run"))
    is_dry = body.get("dry_run", False)
    if not isinstance(is_dry, bool):
        raise Refused("bad_request", "dry_run must be true or false", key="dry_run")
    merchant = _configured(body["merchant"], terms)
    asset = read_asset(body.get("asset", LOVELACE), "asset")
    request = _read_topup_request(body["request"]) if "request" in body else None
    return TopupGoal(merchant, asset, _amount(body, "units", asset), request), is_dry


def read_prepaid_question(raw: bytes) -> tuple[str, MerchantRequest]:
    """(origin, the request that a prepaid balance may serve). The request's body does not matter."""
    body = _fields(_json(raw), "the body", ("origin", "request"))
    call = _fields(body["request"], "request", ("method", "path"), ("headers",))
    read = _call_of(call, (("method", _METHOD, "an HTTP method in capitals"), ("path", _PATH, _PATH_FORM)))
    return _read_origin(body["origin"]), MerchantRequest(
        read["method"], read["path"], "", _read_call_headers(call)
    )


def _configured(merchant: object, terms: AgentConfig) -> str:
    """The origin of a configured merchant, given its name in [merchants] or its origin."""
    origin = next((one.origin for one in terms.merchants.values() if one.name == merchant), None)
    if origin is None and isinstance(merchant, str):
        with suppress(ValueError):
            origin = parse_origin(merchant)
    if origin is None or origin not in terms.merchants:
        raise Refused("merchant_not_allowed", f"{ascii(merchant)[:80]} is not in [merchants]", key="merchant")
    return origin


@dataclass(frozen=True, slots=True)
class LimitsBody:
    """Limits to set. `app` and `merchant` are names; None means all of them."""

    app: str | None
    merchant: str | None
    asset: str
    most_units: dict[Window, int | None]


def read_limits(raw: bytes) -> LimitsBody:
    body = _fields(_json(raw), "the body", ("limits",), ("app", "merchant", "asset"))
    asset = read_asset(body.get("asset", LOVELACE), "asset")
    most_units = _read_windows(body["limits"], asset, may_be_null=True)
    if not most_units:
        raise Refused("bad_request", "limits is empty", key="limits")
    return LimitsBody(_text(body, "app"), _text(body, "merchant"), asset, most_units)


def read_pin(raw: bytes) -> tuple[Role, str]:
    """(role, address) of a pin."""
    body = _fields(_json(raw), "the body", ("role", "address"))
    roles: dict[object, Role] = {"pay_to": "pay_to", "split": "split"}
    role, address = _text(body, "role"), _text(body, "address") or ""
    if role not in roles:
        raise Refused("bad_request", "role must be pay_to or split", key="role")
    return roles[role], address


def read_new_app(raw: bytes) -> NewApp:
    body = _fields(_json(raw), "the body", ("name",), ("scopes", "merchants", "assets", "limits", "expires_at"))
    name = body["name"]
    if not isinstance(name, str) or not _APP_NAME.fullmatch(name):
        raise Refused("bad_request", "name must be letters, digits, and . _ - between them", key="name")
    scopes = _texts(body, "scopes") or ("pay",)
    if not set(scopes) <= set(SCOPES):
        raise Refused("bad_request", f"scopes must be of {', '.join(SCOPES)}", key="scopes")
    named = _texts(body, "assets")
    assets = None if named is None else frozenset(read_asset(one, "assets") for one in named)
    asset = next(iter(assets)) if assets is not None and len(assets) == 1 else LOVELACE
    most_units = {
        window: units
        for window, units in _read_windows(body.get("limits", {}), asset).items()
        if units is not None
    }
    return NewApp(name, frozenset(scopes), _texts(body, "merchants"), assets, asset, most_units, _expiry(body))


def read_pause(raw: bytes) -> str:
    """The reason for the pause; empty when none was given."""
    return _one_line(_text(_fields(_json(raw), "the body", (), ("reason",)), "reason") or "", "reason")


def _one_line(text: str, key: str) -> str:
    if len(text) > REASON_MAX_CHARS or not text.isprintable():
        raise Refused("bad_request", f"{key} must be one line of at most {REASON_MAX_CHARS} characters", key=key)
    return text


def read_new_merchant(raw: bytes) -> tuple[str, Fields]:
    """The merchant's name, and its settings by their names in the config file."""
    keys = ("known_as", "partner", "proof", "ready", "split_mode", "request_commitment", "timeout_s")
    body = _fields(_json(raw), "the body", ("name", "origin"), keys)
    name = body["name"]
    if not isinstance(name, str):
        raise Refused("bad_request", "name must be text", key="name")
    return name, {key: value for key, value in body.items() if key != "name"}


def read_token_order(raw: bytes) -> tuple[int | None, str | None]:
    """(when the new token expires, the token). None for never; None when the daemon is to make the token."""
    body = _fields(_json(raw), "the body", (), ("expires_at", "token"))
    token = _text(body, "token")
    if token is not None and not re.fullmatch(TOKEN_PATTERN[1:-1], token):
        raise Refused("bad_request", "token must be pa_ and 43 characters of URL-safe base64", key="token")
    return _expiry(body), token


def _expiry(body: Fields) -> int | None:
    text = _text(body, "expires_at")
    return None if text is None else time_ms(text, "expires_at")


def _read_windows(value: object, asset: str, *, may_be_null: bool = False) -> dict[Window, int | None]:
    body = _fields(value, "limits", (), tuple(Window))
    return {
        Window(name): None if may_be_null and body[name] is None else _amount(body, name, asset, parse_count)
        for name in body
    }


def read_asset(value: object, key: str) -> str:
    try:
        return parse_asset(value)
    except Refused as refused:
        raise Refused("bad_request", refused.detail, key=key) from None


def _text(body: Fields, key: str) -> str | None:
    value = body.get(key)
    if key in body and not isinstance(value, str):
        raise Refused("bad_request", f"{key} must be text", key=key)
    return value if isinstance(value, str) else None


def _texts(body: Fields, key: str) -> tuple[str, ...] | None:
    value = body.get(key)
    if key not in body:
        return None
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise Refused("bad_request", f"{key} must be a non-empty list of strings", key=key)
    return tuple(value)


def _read_topup_request(value: object) -> TopupSource:
    body = _fields(value, "request", ("method", "path"), ("body",))
    read = _call_of(body, (("method", _METHOD, "an HTTP method in capitals"), ("path", _PATH, _PATH_FORM)))
    content = body.get("body", "")
    if not isinstance(content, str):
        raise Refused("bad_request", "request.body must be a string", key="request.body")
    return TopupSource(read["method"], read["path"], content)


def time_ms(text: str, key: str) -> int:
    """Convert an RFC 3339 time with a zone to POSIX milliseconds."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise ValueError
        # converted to UTC, the year must still be valid
        return (moment.astimezone(UTC) - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        raise Refused("bad_request", f"{key} must be a time such as 2026-11-24T13:38:18Z", key=key) from None


def _json(raw: bytes) -> object:
    try:
        return strict_json.loads(raw, max_bytes=BODY_MAX_BYTES, max_depth=_DEPTH_MAX)
    except Refused as refused:
        if refused.name != "invoice_invalid/json":
            raise
        raise Refused("bad_request", refused.detail) from None


def _fields(value: object, where: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> Fields:
    """The fields of one of our own objects. A missing or unknown key raises `bad_request` with its name."""
    if not isinstance(value, dict):
        raise Refused("bad_request", f"{where} must be a JSON object")
    for key in value:
        if key not in needed and key not in optional:
            raise Refused("bad_request", f"{where} has the unknown key {ascii(key)[:80]}", key=key[:80])
    for key in needed:
        if key not in value:
            raise Refused("bad_request", f"{where} lacks {key}", key=key)
    return value


def _amount(
    body: Fields, key: str, asset: str | None = None, parse: Callable[[object, str], int] = parse_units
) -> int:
    """An amount in our own envelope: a string, because not every client preserves large JSON numbers."""
    value = body[key]
    if not isinstance(value, str):
        raise Refused("bad_request", f"{key} must be a string of digits", key=key)
    try:
        units = parse(value, key)
        return units if asset is None else check_supply(asset, units, key)
    except Refused as refused:
        raise Refused("bad_request", refused.detail, key=key) from None


def _status(value: object, key: str) -> int:
    if type(value) is not int or not 100 <= value <= 599:
        raise Refused("bad_request", f"{key} must be an HTTP status, 100 to 599", key=key)
    return value


def read_key(key: str | None) -> str | None:
    if key is not None and not _KEY.fullmatch(key):
        raise Refused("idempotency_key_invalid", "Idempotency-Key must be 1 to 255 visible ASCII characters")
    return key


def _read_origin(value: object) -> str:
    try:
        return parse_origin(value if isinstance(value, str) else "")
    except ValueError as error:
        raise Refused("merchant_not_allowed", str(error), key="origin") from None


def _read_request(value: object) -> MerchantRequest:
    body = _fields(value, "request", ("method", "path", "body_sha256"), ("headers",))
    read = _call_of(
        body,
        (
            ("method", _METHOD, "an HTTP method in capitals"),
            ("path", _PATH, _PATH_FORM),
            ("body_sha256", _HEX_32, "the body's SHA-256 in lower-case hex"),
        ),
    )
    return MerchantRequest(read["method"], read["path"], read["body_sha256"], _read_call_headers(body))


def _read_call_headers(body: Fields) -> dict[str, str]:
    headers: dict[str, str] = {}
    for name, text in _read_headers(body.get("headers", {}), "request.headers"):
        key, before = name.lower(), headers.get(name.lower())
        if key in _BUYER and before not in (None, text):
            raise Refused("bad_request", f"the header {name} is given twice", key="request.headers")
        is_one = before is None or key in _BUYER
        headers[key] = text if is_one else f"{before}, {text}"  # repeated headers form one list (RFC 9110 5.3)
    return headers


def _call_of(body: Fields, parts: Iterable[tuple[str, re.Pattern[str], str]]) -> dict[str, str]:
    """The text parts of a request, each checked against its pattern."""
    read: dict[str, str] = {}
    for key, form, what in parts:
        text = body[key]
        if not isinstance(text, str) or not form.fullmatch(text):
            raise Refused("bad_request", f"request.{key} must be {what}", key=f"request.{key}")
        read[key] = text
    return read


def _read_response(value: object) -> tuple[HttpResponse, str]:
    """The 402, and its text as stored."""
    body = _fields(value, "response", ("status",), ("headers", "body", "body_base64"))
    if ("body" in body) == ("body_base64" in body):
        raise Refused("bad_request", "response must have either body or body_base64", key="response.body")
    status = _status(body["status"], "response.status")
    headers = _read_headers(body.get("headers", {}), "response.headers")
    received = _written(body)
    if "body_base64" in body:
        return parse_response(status, headers, _read_base64(body["body_base64"], "response.body_base64")), received
    response = make_response(status, headers, body["body"])
    if len(received) > strict_json.MAX_BYTES:
        _require_small(body["body"])
    return response, received


def _written(body: Fields) -> str:
    """Serialise as `strict_json.dumps` does. `json` is faster when no number has a fraction, as in most 402s."""
    try:
        return json.dumps(body, separators=(",", ":"))
    except TypeError:
        return strict_json.dumps(body)


def _require_small(body: object) -> None:
    """Apply the size limit of a 402's body whatever form it was forwarded in."""
    if len(json.dumps(body, default=lambda number: number.text, ensure_ascii=False)) > strict_json.MAX_BYTES:
        raise Refused("body_too_big", f"the 402's body has more than {strict_json.MAX_BYTES} bytes")


def _read_headers(value: object, where: str = "headers") -> list[tuple[str, str]]:
    """Headers as an object, or as a list of pairs when a name repeats."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    read: list[tuple[str, str]] = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise Refused(
                "bad_request",
                f"{where} must be an object of strings or a list of [name, value]",
                key=where,
            )
        read.append((pair[0], pair[1]))
    return read


def _read_base64(value: object, key: str) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except ValueError:
        raise Refused("bad_request", f"{key} must be base64", key=key) from None
