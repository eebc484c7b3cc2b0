"""The fuzz targets: five functions that take any bytes and raise when a promise is broken.

Each checks what must hold for the results of the code under test. Documented exceptions are caught; any other is a
finding. `bug` is the same target over code with one planted mistake, so that the tests can show that the target
and the fuzzer find something.
"""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cbor2
import h11
from kit.wallet import ASSETS, OWN, SIGNER, TTL_SLOT, pay

from payagent.chain import blockfrost_parse as answers
from payagent.chain import json_answers
from payagent.chain.provider import AddressTx, ChainUtxo, Found, NotFound, SubmitAnswer, SubmitKind, Unknown
from payagent.chain.submit_answers import RawAnswer, TransportError, classify_submit
from payagent.core.address import Address, encode_address, parse_address
from payagent.core.invoice import Invoice
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.dialects import (
    HttpRequest,
    HttpResponse,
    PrepaidAnswer,
    ProofMaterial,
    Reading,
    RetryAnswer,
    parse_answer,
    parse_response,
    proof_headers,
    read_answer,
    read_offers,
    read_prepaid,
    read_status,
    registry,
)
from payagent.dialects.status_answers import WORDS
from payagent.proxy import headers as proxy_headers
from payagent.proxy import http1 as upstream
from payagent.signer.policy import Clocks, Policy
from payagent.wallet.transaction import build
from payagent.wallet.tx_check import CheckFailed
from payagent.wallet.tx_check import check as check_bytes
from payagent.wallet.utxo_index import Utxo
from sim.signing import sign

Fuzzed = Callable[[bytes], None]
PREPROD = NETWORKS["preprod"]
NOW_MS = 1_795_527_200_123
TX = "ab" * 32
TOKEN = "aa" * 28 + "474f4c44"


@dataclass(frozen=True)
class Target:
    """`words` are texts that the fuzzer may insert anywhere."""

    run: Fuzzed
    bug: Fuzzed
    words: tuple[bytes, ...] = ()
    most_bytes: int = 4096


def holds(what: bool, said: object = "") -> None:
    """An `assert` that no interpreter option removes."""
    if not what:
        raise AssertionError(said)


# --- the 402, and a merchant's other answers

READINGS = tuple(
    Reading(
        origin="https://api.example.com",
        network=PREPROD,
        split_mode=mode,
        received_at_ms=NOW_MS,
        decimals={TOKEN: 0},
        own=OWN,
        call=HttpRequest("GET", "https://api.example.com/premium-data", hashlib.sha256(b"").hexdigest(), {}),
        assets=frozenset(("lovelace", TOKEN)),
        salt=bytes(32) if mode else None,
    )
    for mode in (None, "additional", "inclusive")
)
SHOWN = ProofMaterial(TX, b"\x84", "cd" * 32 + "#0", "int_" + "0" * 24)
DIALECTS = tuple(dict.fromkeys(dialect.name for dialect in registry.DIALECTS))
STATUSES = (402, 402, 402, 402, 402, 402, 402, 200, 202, 302, 400, 409, 429, 503)


def body402(data: bytes, answered: Callable[..., RetryAnswer] = read_answer) -> None:
    """A byte for the status, one for the reading's settings, header lines, an empty line, a body."""
    how, known, wire = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
    status, reading = STATUSES[how[0] % len(STATUSES)], READINGS[known[0] % len(READINGS)]
    head, _, body = wire.partition(b"\n\n")
    lines = [line.partition(b":") for line in head.split(b"\n") if line]
    headers = [(name.decode("latin-1"), value.decode("latin-1").strip()) for name, _, value in lines]
    try:
        for invoice in read_offers(parse_response(status, headers, body), reading):
            _check_invoice(invoice)
    except Refused as refused:
        holds(refused.detail.isprintable(), refused.detail)
    answer = parse_answer(status, headers, body)
    for dialect in DIALECTS:
        said = answered(dialect, answer, invoice_id="inv-1", shown_tx=TX, now_ms=NOW_MS)
        holds(said.reason.isascii() and said.reason.isprintable() and 0 < len(said.reason) <= 200, said)
        holds(said.retry_after_s is None or 0 < said.retry_after_s <= 3600, said)
    told = read_status(answer.body)
    holds(told in (*WORDS.values(), "unknown"), told)
    _check_prepaid(read_prepaid(status, body))


def _check_invoice(invoice: Invoice) -> None:
    first, *others = invoice.outputs
    holds(first.role == "pay_to" and all(output.role == "split" for output in others), invoice)
    holds(len({output.address.raw for output in invoice.outputs}) == len(invoice.outputs) <= 16, invoice)
    for output in invoice.outputs:
        holds(type(output.units) is int and 0 < output.units < 2**63, invoice)
        holds(parse_address(output.address.text, PREPROD) == output.address != OWN, invoice)
    ends_ms = invoice.expires_at_ms
    holds(ends_ms is not None and NOW_MS < ends_ms <= NOW_MS + 86_400_000, invoice)
    try:
        proof = proof_headers(
            invoice.dialect,
            invoice_id=invoice.invoice_id,
            shown=SHOWN,
            echo=invoice.echo,
            partner=None,
            wallet=OWN.text,
        )
    except Refused:
        return
    holds(all(value.isascii() and value.isprintable() for value in proof.values()), proof)


def _check_prepaid(said: PrepaidAnswer) -> None:
    holds(said.understood or bool(said.why), said)
    numbers = [number for number in (said.remaining, said.total, said.used) if number is not None]
    holds(all(type(number) is int and number >= 0 for number in numbers), said)
    holds(not numbers or said.understood, said)


def _careless_read(dialect: str, response: HttpResponse, **shown: Any) -> RetryAnswer:
    """The mistake: it converts Retry-After to a number without checking it."""
    int(response.headers.get("retry-after", "0"))
    return read_answer(dialect, response, **shown)


# --- a provider

PROVIDER_ADDRESS = "addr_test1vz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzersp2s33m"
BLOCK = "cd" * 32
PARSERS: tuple[Callable[[Any], Any], ...] = (
    answers.parse_tip,
    lambda body: answers.parse_block(body, BLOCK),
    lambda body: answers.parse_tx(body, TX),
    answers.parse_genesis,
    answers.parse_parameters,
    lambda body: answers.parse_utxos(body, PROVIDER_ADDRESS),
    answers.parse_address_txs,
    lambda body: answers.parse_movements(body, TX, PROVIDER_ADDRESS),
    answers.parse_validity,
)
PROVIDER_STATUSES = (200, 200, 200, 404, 400, 402, 409, 425, 429, 500, 504, None)


def provider(data: bytes, classify: Callable[[RawAnswer, str], SubmitAnswer] = classify_submit) -> None:
    """A byte for the request and the transport error, one for the status, a body."""
    call, how, body = data[:1] or b"\0", data[1:2] or b"\0", data[2:]
    status = PROVIDER_STATUSES[how[0] % len(PROVIDER_STATUSES)]
    error = list(TransportError)[call[0] % 16 - 10] if call[0] % 16 > 9 else None
    answer = RawAnswer(status, body, body[:9].decode("latin-1"), error)
    read = json_answers.understood(answer, PARSERS[call[0] // 16 % len(PARSERS)])
    if isinstance(read, Found):
        holds(status == 200 and error is None, read)
        _check_found(read.value)
    elif isinstance(read, NotFound):
        holds(status == 404 and error is None, read)
    else:
        holds(isinstance(read, Unknown) and read.reason.isprintable() and len(read.reason) < 400, read)
    submitted = classify(answer, TX)
    holds(submitted.detail.isprintable() and len(submitted.detail) < 300, submitted)
    if submitted.kind is SubmitKind.ACCEPTED:
        named = body.decode("utf-8", "replace").strip("\ufeff \t\r\n\0").replace("\\", "").replace('"', "")
        holds(status == 200 and error is None, submitted)
        holds(named.strip().lower() == TX or b"u00" in body, (submitted, body))


def _check_found(value: Any) -> None:
    for row in value if isinstance(value, tuple) else (value,):
        if isinstance(row, ChainUtxo):
            holds(0 < row.lovelace <= 45 * 10**15 and row.address == PROVIDER_ADDRESS, row)
            holds(all(0 < units < 2**63 for units in row.assets.values()) and row.index >= 0, row)
        if isinstance(row, AddressTx):
            holds(len(bytes.fromhex(row.tx_id)) == 32 and row.block_height >= 0, row)


def _trusting_classify(answer: RawAnswer, tx_id: str) -> SubmitAnswer:
    """The mistake: it accepts any answer that contains the id."""
    if answer.status == 200 and tx_id.encode() in answer.body:
        return SubmitAnswer(SubmitKind.ACCEPTED, "our transaction id", None)
    return classify_submit(answer, tx_id)


# --- an address


def address(data: bytes, parse: Callable[[object, Any], Address] = parse_address) -> None:
    """A byte for the form: text as it is, or bytes that get a correct checksum."""
    how, rest = data[:1] or b"\0", data[1:]
    prefix = ("addr_test", "addr", "stake", "")[how[0] // 4 % 4]
    text = rest.decode("utf-8", "replace") if how[0] % 4 == 0 or not rest else _bech32(prefix, rest, how[0] % 4)
    for network in NETWORKS.values():
        try:
            found = parse(text, network)
        except Refused as refused:
            holds(refused.name.startswith("address_") and refused.detail.isascii(), refused)
            continue
        kind = found.raw[0] >> 4
        holds(found.text == text and (kind, len(found.raw)) in ((0, 57), (6, 29)), found)
        holds(found.raw[0] & 15 == network.network_id == int(text.startswith("addr1")), found)
        holds(encode_address(found.raw) == found, found)
        holds(found.payment_key_hash == found.raw[1:29], found)


def _bech32(prefix: str, raw: bytes, constant: int) -> str:
    """Bech32 as in BIP-173; `constant` 2 is that of bech32m, and 3 leaves non-zero padding."""
    charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    bits = "".join(f"{byte:08b}" for byte in raw)
    bits += ("1" if constant == 3 else "0") * (-len(bits) % 5)
    values = [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]
    check = 1
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values + [0] * 6:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    check ^= 0x2BC830A3 if constant == 2 else 1
    values += [check >> 5 * (5 - at) & 31 for at in range(6)]
    return prefix + "1" + "".join(charset[value] for value in values)


def _generous_parse(value: object, network: Any) -> Address:
    """The mistake: it accepts an address of any length."""
    try:
        return parse_address(value, network)
    except Refused as refused:
        if refused.name != "address_invalid/wrong_length":
            raise
        return Address(str(value), bytes(57))


# --- the bytes of a transaction

ADA = 1_000_000
UTXOS = (Utxo("11" * 32, 0, 30 * ADA, ((ASSETS[1], 500), (ASSETS[40], 2**40))), Utxo("22" * 32, 1, 20 * ADA))
PLAN = build(UTXOS, UTXOS[1], pay(10 * ADA, 2 * ADA), change=OWN, ttl_slot=TTL_SLOT, network_id=0)
RAW = sign(PLAN, SIGNER)
CAPS = {"lovelace": 15 * ADA}
PAID = 2


def admit(body: bytes, paid: int) -> None:
    """The verdict of a signer that has signed nothing yet."""
    Policy(OWN.raw, CAPS, CAPS, Clocks(lambda: 0.0, lambda: None)).admit(body, paid)


def cbor(
    data: bytes,
    check: Callable[..., None] = check_bytes,
    require: Callable[[bytes, int], None] = admit,
) -> None:
    """A byte for the form: a whole transaction as it is, or a body that is then properly signed."""
    how, rest = data[:1] or b"\0", data[1:]
    raw = rest if how[0] % 2 == 0 else _signed(rest)
    try:
        check(raw, PLAN, SIGNER.public_key)
    except CheckFailed as failed:
        holds(str(failed).isprintable(), failed)
    else:
        holds(raw == RAW, "other bytes than the planned ones passed")
    body = rest
    try:
        require(body, PAID)
    except Refused as refused:
        holds(refused.detail.isprintable(), refused)
    else:
        _check_signable(body)


def _signed(body: bytes) -> bytes:
    signature = SIGNER.sign_hash(hashlib.blake2b(body, digest_size=32).digest())
    witnesses = cbor2.dumps({0: cbor2.CBORTag(258, [[SIGNER.public_key, signature]])})
    return b"\x84" + body + witnesses + b"\xf5\xf6"


def _check_signable(body: bytes) -> None:
    """Check a body the signer admits with an independent CBOR reader."""
    read = cbor2.loads(body)
    holds(set(read) in ({0, 1, 2, 3, 15}, {0, 1, 2, 3, 7, 15}) and read[15] == 0, read)
    holds(
        0 <= read[2] <= 900_000 and len(read[0].value if isinstance(read[0], cbor2.CBORTag) else read[0]) > 0, read
    )
    leaving = read[2]
    for place, (to, value) in enumerate(read[1]):
        holds(place < PAID or to == OWN.raw, read)
        holds((to[0], len(to)) in ((0x00, 57), (0x60, 29)), read)
        lovelace = value[0] if isinstance(value, list) else value
        leaving += 0 if to == OWN.raw else lovelace
    holds(leaving <= 15 * ADA, read)


def _hasty_check(raw: bytes, plan: Any, public_key: bytes) -> None:
    """The mistake: it does not check the TTL."""
    try:
        check_bytes(raw, plan, public_key)
    except CheckFailed as failed:
        if not str(failed).startswith("TTL"):
            raise


# --- what comes back over HTTP

LOOP = asyncio.new_event_loop()
TARGET = upstream.Target.of_origin("https://api.example.com")
HOP_BY_HOP = (
    b"connection",
    b"transfer-encoding",
    b"keep-alive",
    b"te",
    b"trailer",
    b"upgrade",
    b"proxy-connection",
)
CALL = upstream.UpstreamRequest(b"GET", b"/chat", [(b"accept", b"*/*")], None)


class _Wire(asyncio.Transport):
    """Accepts what is sent and discards it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_over = False

    def write(self, data: Any) -> None:
        holds(not self.is_over, "written after the end")

    def abort(self) -> None:
        self.is_over = True

    def is_closing(self) -> bool:
        return self.is_over

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def http(data: bytes, passes: Callable[..., list[tuple[bytes, bytes]]] = proxy_headers.passing) -> None:
    """A byte for the size of the pieces, and what a merchant sends until its connection ends."""
    step, wire = (data[:1] or b"\0")[0] or len(data) + 1, data[1:]
    pieces = [wire[at : at + step] for at in range(0, len(wire), step)]
    head = LOOP.run_until_complete(_answer(pieces, len(wire)))
    lines = [line.partition(b":") for line in wire.split(b"\r\n")[1:] if b":" in line]
    given = [(name.strip().lower(), value.strip()) for name, _, value in lines]
    for own in (False, True):
        _check_passing(given, passes(given, own=own), own)
    if head is not None:
        _check_passing(list(head.headers), passes(list(head.headers)), False)


async def _answer(pieces: list[bytes], size: int) -> h11.Response | None:
    """The response head that `_Connection` read, if any, after checking the body."""
    line, wire = upstream._Connection(TARGET, 5.0), _Wire()
    line.connection_made(wire)

    async def arrive() -> None:
        for piece in pieces:
            if not wire.is_over:
                line.data_received(piece)
        line.eof_received()
        line.connection_lost(None)

    arriving = asyncio.get_running_loop().create_task(arrive())
    try:
        head = await line.begin(CALL)
        answer = upstream.UpstreamAnswer(line, head, upstream.Upstream(TARGET, 5.0))
        holds(100 <= answer.status <= 999 and all(b"\n" not in v and b"\r" not in v for _, v in answer.headers))
        body, more = b"", True
        while more:
            chunk, more = await answer.read()
            body += chunk
        holds(len(body) <= size, "more body than came")
        return head
    except upstream._NoAnswerError:
        holds(size == 0, "something was heard")
    except (Refused, upstream.AnswerBrokenError) as error:
        is_late = "nothing moved" in str(error) or "did not begin" in str(error)
        holds(not is_late, "it waited for what will not come")
    finally:
        await arriving
    return None


def _check_passing(given: list[tuple[bytes, bytes]], passed: list[tuple[bytes, bytes]], own: bool) -> None:
    names = {name for name, _ in passed}
    holds(all(pair in given for pair in passed), "a header was made up")
    holds(not names & set(HOP_BY_HOP), names)
    holds(own or not any(name.startswith(b"x-payagent-") for name in names), names)
    options = {o.strip().lower() for n, v in given if n == b"connection" for o in v.split(b",")}
    holds(not any(n in options and not n.startswith(b"x-payagent-") for n in names), (names, options))
    both = any(name == b"transfer-encoding" for name, _ in given)
    holds(not (both and b"content-length" in names), "a length beside chunks")


def _leaky_passing(headers: Any, *, own: bool = False) -> list[tuple[bytes, bytes]]:
    """The mistake: it ignores the headers that Connection names."""
    return proxy_headers.passing([pair for pair in headers if pair[0] != b"connection"], own=own)


TARGETS = {
    "body402": Target(
        run=body402,
        bug=lambda data: body402(data, _careless_read),
        words=(
            *(
                b'"detail":',
                b'"invoiceId":',
                b'"amountUnits":',
                b'"payTo":',
                b'"timeout":',
                b'"extra":',
                b'"outputs":',
            ),
            *(
                b'"split":',
                b'"mode":',
                b'"units":',
                b'"additional"',
                b'"inclusive"',
                b'"x402Version":',
                b'"accepts":',
            ),
            *(
                b'"batchTarget":',
                b'"status":',
                b'"remaining":',
                b'"total":',
                b'"used":',
                b'"expires_at":',
                b"null",
            ),
            *(
                b"PAYMENT-REQUIRED: ",
                b"Retry-After: ",
                b"content-type: application/json\n",
                b'"1"',
                b'"',
                b"{}",
                b"[]",
            ),
        ),
    ),
    "provider": Target(
        run=provider,
        bug=lambda data: provider(data, _trusting_classify),
        words=(
            *(TX.encode(), BLOCK.encode(), b'"', b'\\"', b"null", b"true", b"false", b'"lovelace"', b"1e9", b"-1"),
            *(b"BadInputsUTxO", b"ValueNotConservedUTxO", b"All inputs are spent", b'"code": 3117', b"[]", b"{}"),
        ),
    ),
    "address": Target(
        run=address,
        bug=lambda data: address(data, _generous_parse),
        words=(b"addr1", b"addr_test1", b"stake1", b"DdzFF"),
        most_bytes=256,
    ),
    "cbor": Target(
        run=cbor,
        bug=lambda data: cbor(data, _hasty_check),
        words=(b"\xd9\x01\x02", b"\x9f", b"\xbf", b"\xff", b"\x1b", b"\x58\x20", b"\x0f\x00", b"\x0f\x01"),
        most_bytes=2048,
    ),
    "http": Target(
        run=http,
        bug=lambda data: http(data, _leaky_passing),
        words=(
            *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.0 200\r\n", b"\r\n\r\n", b"\r\n"),
            *(
                b"Content-Length: ",
                b"Transfer-Encoding: chunked\r\n",
                b"Connection: ",
                b"0\r\n\r\n",
                b"X-Payagent-State: ",
            ),
        ),
    ),
}
