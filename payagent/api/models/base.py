"""The field types of request and response bodies, and the parser of request bodies.

Amounts are integers in Python and strings of digits in JSON: not every client preserves large JSON numbers.
Never: I/O; accepts an unknown key, because a misspelt limit on money would silently be no limit.
"""

import base64
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import takewhile
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from payagent.core import strict_json
from payagent.core.money import LOVELACE, check_supply, parse_asset, parse_count, parse_units
from payagent.core.origin import parse_origin
from payagent.core.policy import Window
from payagent.core.prepaid_balance import CALLS
from payagent.core.problems import Refused
from payagent.core.timestamps import iso_time, posix_ms

BODY_MAX_BYTES = 256 * 1024
LINE_MAX_CHARS = 300

# the envelope adds two levels around the 402's body, which may be as deep as one sent by itself
_DEPTH_MAX = strict_json.MAX_DEPTH + 2
_KEY = re.compile(r"[!-~]{1,255}", re.ASCII)
_FAULTS = {"extra_forbidden": 0, "missing": 1, "refused": 3}

T = TypeVar("T")
Pairs = list[tuple[str, str]]


def _digits(pattern: str, description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "description": description})


# fields of responses
Units = Annotated[int, PlainSerializer(str), _digits(r"^(0|[1-9][0-9]{0,18})$", "Smallest units, as digits.")]
SignedUnits = Annotated[
    int, PlainSerializer(str), _digits(r"^-?(0|[1-9][0-9]*)$", "Smallest units; debits positive.")
]
Time = Annotated[
    int,
    PlainSerializer(iso_time),
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z$"}),
]
"""POSIX milliseconds in Python, RFC 3339 in JSON."""
Amounts = dict[str, Units]

# fields of both
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LimitName = Annotated[Window, Field(strict=False)]


def _checked(parse: Callable[[object], T]) -> Callable[[object], T]:
    """Turn a parser of core, which raises `Refused`, into a validator."""

    def parsed(value: object) -> T:
        try:
            return parse(value)
        except Refused as refused:
            raise ValueError(refused.detail) from None

    return parsed


def _text_of(parse: Callable[[object], int]) -> BeforeValidator:
    def parsed(value: object) -> int:
        if not isinstance(value, str):
            raise ValueError("write the amount as a string of digits")
        return parse(value)

    return BeforeValidator(_checked(parsed))


def _in_supply(units: int, info: ValidationInfo) -> int:
    """The amount is of the body's `asset`, or of the one that `assets` lists; otherwise of lovelace."""
    assets = set(info.data.get("assets") or [info.data.get("asset", LOVELACE)])
    asset = assets.pop() if len(assets) == 1 else LOVELACE
    return _checked(lambda _: check_supply(asset, units))(units)


def _time_ms(text: object) -> int:
    try:
        moment = datetime.fromisoformat(text if isinstance(text, str) else "")
        return posix_ms(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise ValueError("write a date or a time, such as 2026-11-24 or 2026-11-24T13:38:18Z") from None


def _line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("write one line of printable characters")
    return text


def refusing(refused: Refused) -> PydanticCustomError:
    """The error by which a field's validator refuses with its own code. Any other fault of the body goes first."""
    return PydanticCustomError("refused", "refused", {"refused": refused})


def _origin(value: object) -> str:
    try:
        return parse_origin(value if isinstance(value, str) else "")
    except ValueError as error:
        raise refusing(Refused("merchant_not_allowed", str(error), key="origin")) from None


def read_pairs(value: object) -> Pairs:
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise ValueError("write an object of strings, or a list of [name, value]")
    return [(name, text) for name, text in pairs]


def _is_pair(pair: object) -> bool:
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)


def _base64(value: object) -> bytes:
    try:
        return base64.b64decode(value if isinstance(value, str) else "?", validate=True)
    except ValueError:
        raise ValueError("write base64 (RFC 4648)") from None


# fields of requests
GivenUnits = Annotated[int, _text_of(parse_units), _digits(r"^[1-9][0-9]{0,18}$", "Smallest units, as digits.")]
GivenCount = Annotated[
    int, _text_of(parse_count), _digits(r"^(0|[1-9][0-9]{0,18})$", "Smallest units, as digits.")
]
InSupply = AfterValidator(_in_supply)
GivenAsset = Annotated[str, BeforeValidator(_checked(parse_asset))]
GivenUnit = Annotated[str, BeforeValidator(_checked(lambda text: CALLS if text == CALLS else parse_asset(text)))]
GivenTime = Annotated[int, BeforeValidator(_time_ms), WithJsonSchema({"type": "string"})]
Origin = Annotated[str, BeforeValidator(_origin)]
Line = Annotated[str, Field(max_length=LINE_MAX_CHARS), AfterValidator(_line)]
Base64 = Annotated[bytes, BeforeValidator(_base64), WithJsonSchema({"type": "string"})]
Headers = Annotated[Pairs, PlainValidator(read_pairs, json_schema_input_type=dict[str, str] | Pairs)]
"""Headers in order. A list of pairs when a name repeats."""


def absent(description: str) -> Any:
    """A field that may be left out, and is then None in Python. In JSON it is never null."""
    return Field(default_factory=lambda: None, description=description)


def closed(*either: str) -> ConfigDict:
    """Refuse unknown keys. The schema says that exactly one of `either` is given."""
    choice: dict[str, Any] = {"oneOf": [{"required": [key]} for key in either]} if either else {}
    return ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, json_schema_extra=choice)


class RequestBody(BaseModel):
    """The body of a request, or an object inside it."""

    model_config = closed()

    @classmethod
    def read(cls, raw: bytes, context: object = None) -> Self:
        """Parse strict JSON. Refused: `bad_request`, and the refusals of the fields' own parsers."""
        try:
            return cls.check(strict_body(raw), context)
        except Refused as refused:
            if refused.name != "invoice_invalid/json":
                raise
            raise Refused("bad_request", refused.detail) from None

    @classmethod
    def check(cls, value: object, context: object = None) -> Self:
        try:
            return cls.model_validate(value, context=context)
        except ValidationError as error:
            raise _refusal(error) from None


def strict_body(raw: bytes) -> object:
    """Refused: `invoice_invalid/json`, `body_too_big`."""
    return strict_json.loads(raw, max_bytes=BODY_MAX_BYTES, max_depth=_DEPTH_MAX)


def _refusal(error: ValidationError) -> Refused:
    """`bad_request` with the first fault: an unknown key, or else a missing one, or else a wrong value.

    If there is none, the refusal of a field's own parser.
    """
    faults = error.errors(include_url=False, include_input=False)
    fault = min(faults, key=lambda one: _FAULTS.get(one["type"], 2))
    if fault["type"] == "refused":
        refused: Refused = fault["ctx"]["refused"]
        return refused
    path = [str(part) for part in takewhile(_is_field, fault["loc"])]
    if fault["type"] in ("extra_forbidden", "missing"):
        where, key = ".".join(path[:-1]) or "the body", str(fault["loc"][-1])[:80]
        verb = "lacks" if fault["type"] == "missing" else "has the unknown key"
        return Refused("bad_request", f"{where} {verb} {key!a}", key=key)
    name = ".".join(path)[:80]
    if fault["type"] == "model_type":
        detail = f"{name or 'the body'} must be a JSON object"
    else:
        detail = f"{name!a}: {what_is_wrong(fault)}"
    fix = "Write a short name without spaces, such as my-bot." if name == "name" else None
    return Refused("bad_request", detail, fix=fix, **({"key": name} if name else {}))


def _is_field(part: int | str) -> bool:
    """Whether a part of an error's place is a key, and not an index in a list or the "[key]" of a dictionary."""
    return isinstance(part, str) and part != "[key]"


def what_is_wrong(fault: Mapping[str, Any]) -> str:
    """The message of one of pydantic's errors. It never repeats a secret value."""
    return str(fault["msg"]).removeprefix("Value error, ")


def read_key(key: str | None) -> str | None:
    """An Idempotency-Key. Refused: `idempotency_key_invalid`."""
    if key is not None and not _KEY.fullmatch(key):
        raise Refused("idempotency_key_invalid", "Idempotency-Key must be 1 to 255 visible ASCII characters")
    return key


class Shown(BaseModel):
    """A part of a response that `model_validate` reads from a domain value with the same attributes."""

    model_config = ConfigDict(from_attributes=True)


class Reason(Shown):
    code: str
    reason: str | None
    detail: str | None
