"""Classify the answer to `POST /tx/submit`, by pure tables.

The wording differs by era, node version and provider: a plain string, JSON inside a JSON string, an object instead
of a string, Ogmios codes, a gateway's page. So no answer is compared as a whole. The code searches the body for
names of ledger constructors, which are the same since Shelley. If an answer could mean two things, the class that
makes payagent read the chain before it acts wins.
Never: I/O, raises on text that a provider sent, trusts a transaction id that a provider names.
"""

import json
import re
from dataclasses import dataclass
from enum import StrEnum

from payagent.chain.provider import SubmitAnswer, SubmitKind
from payagent.core.money import parse_count
from payagent.core.problems import Refused

ANSWER_MAX_BYTES = 16 * 1024 * 1024
"""The most bytes read of a list: 100 outputs full of assets with short names are 12 MB of JSON."""

SHORT_MAX_BYTES = 1024 * 1024
"""The most bytes read of any other answer; a transaction full of short-named assets takes half of it."""


class TransportError(StrEnum):
    """How the HTTP exchange failed."""

    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    TRUNCATED = "truncated"
    TOO_BIG = "too_big"


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer before it is interpreted.

    `status` is the HTTP status, not one in the body. `body_sent` says that a first byte may have left. `date_s` is
    the server's clock in Unix time, if the answer is not one that a cache kept.
    """

    status: int | None = None
    body: bytes = b""
    retry_after: str | None = None
    error: TransportError | None = None
    body_sent: bool = True
    date_s: int | None = None


# Statuses that decide alone, whatever the body holds. Blockfrost sends 402 for the daily quota and 418 for the ban
# after exceeding it. A gateway's own timeout (504, 524) says nothing about the server behind it.
_BY_STATUS = {
    401: SubmitKind.AUTH,
    402: SubmitKind.QUOTA,
    403: SubmitKind.AUTH,
    408: SubmitKind.AMBIGUOUS,
    418: SubmitKind.QUOTA,
    425: SubmitKind.FULL,
    429: SubmitKind.RATE,
    504: SubmitKind.AMBIGUOUS,
    524: SubmitKind.AMBIGUOUS,
}

# Ogmios v6 codes of submitTransaction, mapped to the names of their ledger rules.
_OGMIOS_NAMES = {
    "3100": "InvalidWitnesses",
    "3101": "MissingVKeyWitnesses",
    "3117": "BadInputsUTxO",
    "3118": "OutsideValidityIntervalUTxO",
    "3119": "MaxTxSizeUTxO",
    "3120": "OutputTooBigUTxO",
    "3121": "InputSetEmptyUTxO",
    "3122": "FeeTooSmallUTxO",
    "3123": "ValueNotConservedUTxO",
    "3124": "WrongNetwork",
    "3125": "OutputTooSmallUTxO",
    "-32602": "DeserialiseFailure",
}

_ALL_SPENT = ("All inputs are spent", "AllInputsAreSpent")
_MISSING_INPUTS = "BadInputsUTxO"
_UNBALANCED = "ValueNotConservedUTxO"

# First match wins. Missing inputs are checked before these: a transaction of ours that is already on the chain
# fails every rule that needs its inputs.
_VERDICTS = (
    (SubmitKind.EXPIRED, ("OutsideValidityIntervalUTxO",)),
    (
        SubmitKind.NEVER,
        (
            "FeeTooSmallUTxO",
            "OutputTooSmallUTxO",
            "OutputTooBigUTxO",
            "MaxTxSizeUTxO",
            "InputSetEmptyUTxO",
            "MissingVKeyWitnesses",
            "InvalidWitnesses",
            "WrongNetwork",
            "DeserialiseFailure",
        ),
    ),
    (SubmitKind.FULL, ("Mempool Full", "Mempool is full", "MempoolFull")),
)

_OGMIOS_CODE = re.compile(r'code\\*"\s*:\s*\\*"?(-?[0-9]{4,5})(?![0-9])')
# The first number after the name is the lovelace of the inputs: "(MaryValue (Coin 0) ...", "(Value 0 ...",
# "Mismatch {mismatchSupplied = MaryValue (Coin 0) ...". Ogmios has its own field.
_SUPPLIED = re.compile(r'(?:ValueNotConservedUTxO|valueConsumed\\*")[^0-9]{0,120}([0-9]+)')
_EXCERPT_CHARS = 200


def classify_submit(answer: RawAnswer, tx_id: str, project_id: str | None = None) -> SubmitAnswer:
    """Classify an answer to the submission of `tx_id` (64 hex digits, our own hash of the body).

    The project id is removed from the quoted body only, because a transaction id may contain it.
    """
    kind, why = _decide(answer, tx_id, project_id)
    where = "no answer" if answer.status is None else f"http {answer.status}"
    return SubmitAnswer(kind, f"{where}: {why}", retry_after_s(answer.retry_after))


def _decide(answer: RawAnswer, tx_id: str, project_id: str | None) -> tuple[SubmitKind, str]:
    if answer.status is None:
        why = answer.error.value if answer.error else "nothing came back"
        if answer.body_sent:
            return SubmitKind.AMBIGUOUS, f"{why} after the transaction may have been sent"
        return SubmitKind.OUTAGE, f"{why} before the transaction was sent"
    text = answer.body.decode("utf-8", errors="replace").strip("\ufeff \t\r\n\0")
    quoted = _excerpt(text.replace(project_id, "[project id]") if project_id else text)
    if kind := _BY_STATUS.get(answer.status):
        return kind, quoted
    if 200 <= answer.status < 300:
        return _of_success(answer, text, tx_id, quoted)
    if 300 <= answer.status < 400:
        return SubmitKind.CLIENT, "a redirect, which is not followed"
    if 400 <= answer.status < 600:
        return _of_refusal(answer, answer.status, text, quoted)
    return SubmitKind.AMBIGUOUS, "a status outside of HTTP"


def _of_success(answer: RawAnswer, text: str, tx_id: str, quoted: str) -> tuple[SubmitKind, str]:
    """Only our complete id is an acceptance. A part of it, or nothing, is an answer that got lost."""
    if answer.error is not None:
        return SubmitKind.AMBIGUOUS, answer.error.value
    named, whole = _unquoted(text)
    if named == tx_id.lower():
        return SubmitKind.ACCEPTED, "our transaction id"
    if not whole or tx_id.lower().startswith(named):
        return SubmitKind.AMBIGUOUS, f"cut off: {quoted}"
    return SubmitKind.LIAR, f"not our transaction id: {quoted}"


def _unquoted(text: str) -> tuple[str, bool]:
    """Strip up to two layers of JSON string quotes and lower the case; False if the text is cut off.

    The id is never read as JSON before it was read as text: "12e55..." would become the number infinity.
    """
    bare, whole = text, True
    for _ in range(2):
        if not bare.startswith('"'):
            break
        try:
            inner = json.loads(bare)
        except ValueError:
            whole = False
            break
        bare = inner.strip() if isinstance(inner, str) else bare
    if bare.startswith(("{", "[")):
        whole = _parsed(bare)[1]
    return bare.lower(), whole


def _of_refusal(answer: RawAnswer, status: int, text: str, quoted: str) -> tuple[SubmitKind, str]:
    searchable, whole = _parsed(text)
    if answer.error is not None or not whole:
        kind = SubmitKind.OUTAGE if status >= 500 else SubmitKind.AMBIGUOUS
        return kind, f"{answer.error or 'cut off'}: {quoted}"
    if verdict := _of_ledger(searchable):
        return verdict
    if status == 409:  # Dolos: its mempool already has this transaction
        return SubmitKind.SPENT_ALL, "the provider has this transaction already"
    return (SubmitKind.OUTAGE if status >= 500 else SubmitKind.CLIENT), quoted


def _parsed(text: str) -> tuple[str, bool]:
    """Resolve the body's escapes so that it can be searched; False if it began as JSON and broke off."""
    if not text.startswith(("{", "[", '"')):
        return text, True
    try:
        # Numbers stay text: an integer of 5,000 digits would raise.
        value = json.loads(text, parse_int=str, parse_float=str)
        return json.dumps(value), True
    except RecursionError:
        return text, True
    except ValueError:
        return text, False


def _of_ledger(text: str) -> tuple[SubmitKind, str] | None:
    """Return the verdict of the ledger rules that the body names, if any."""
    names = " ".join(_OGMIOS_NAMES.get(code, "") for code in _OGMIOS_CODE.findall(text))
    haystack = f"{text} {names}".lower()

    def has(name: str) -> bool:
        return name.lower() in haystack

    if any(has(name) for name in _ALL_SPENT):
        return SubmitKind.SPENT_ALL, "all inputs are spent"
    missing, unbalanced = has(_MISSING_INPUTS), has(_UNBALANCED)
    if missing or unbalanced:
        supplied = _SUPPLIED.search(text)
        nothing_left = int(supplied[1][:20]) == 0 if supplied else missing
        found = ", ".join(n for n, there in ((_MISSING_INPUTS, missing), (_UNBALANCED, unbalanced)) if there)
        return (SubmitKind.SPENT_ALL if nothing_left else SubmitKind.SPENT_SOME), found
    for kind, needles in _VERDICTS:
        if found := ", ".join(name for name in needles if has(name)):
            return kind, found
    return None


def retry_after_s(header: str | None) -> int | None:
    """Return the seconds of Retry-After (RFC 9110 10.2.3). Its date form would need a clock and gives None."""
    try:
        return parse_count(header.strip()) if header is not None else None
    except Refused:
        return None


def _excerpt(text: str) -> str:
    """Return the beginning of the provider's text, as printable ASCII on one line."""
    short = "".join(c if " " <= c <= "~" else " " for c in text[:_EXCERPT_CHARS])
    return short or "empty body"
