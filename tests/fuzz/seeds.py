"""The seeds of the fuzzer: the examples of the other tests, in the form the targets take."""

import json
from collections.abc import Iterator

import cbor2
from kit.bent_transactions import BENT, body_of, signed, witness_bends
from kit.blockfrost_rows import GENESIS, LATEST, PARAMETERS, TRANSACTION, made_row, spent_row, tx_row, utxo_row
from kit.dialect_examples import NOW_MS, PAY_TO, PREPROD
from kit.hostile_402s import BYRON, Hostile, bases, hostile_402s
from kit.hostile_x402 import hostile_x402s, x402_bases
from kit.retry_answers import CATALOGUE
from kit.submit_answers import ANSWERS
from kit.wallet import OWN, payee
from kit.x402_examples import entry, pack, page, required, v1_entry, v1_required
from targets import PARSERS, PLAN, PROVIDER_STATUSES, RAW, STATUSES, TX

from payagent.core.network import NETWORKS


def _wire(headers: dict[str, str], body: bytes, status: int = 402, known: int = 0) -> bytes:
    head = "".join(f"{name}: {value}\n" for name, value in headers.items()).encode("latin-1", "replace")
    return bytes((STATUSES.index(status), known)) + head + b"\n" + body


def body402() -> Iterator[bytes]:
    good = [*bases(PREPROD, PAY_TO, NOW_MS).values(), *x402_bases(PREPROD, PAY_TO).values()]
    for known in range(3):
        yield from (_wire(base.headers, base.text.encode(), known=known) for base in good)
    hostile: list[Hostile] = [
        *hostile_402s(PREPROD, PAY_TO, OWN.text, NOW_MS),
        *hostile_x402s(PREPROD, PAY_TO, OWN.text),
    ]
    for row in hostile:
        if len(row.raw) < 2000 and row.status in STATUSES:
            yield _wire(row.headers, row.raw, row.status)
    for terms in (required(entry()), v1_required(v1_entry())):
        yield _wire({"PAYMENT-REQUIRED": pack(terms)}, b"{}")
        yield _wire({}, json.dumps(terms).encode())
        yield _wire({}, page(terms).encode())
    for words in CATALOGUE.values():
        settled = pack({"success": False, "errorReason": words[0], "transaction": TX})
        yield _wire({"PAYMENT-RESPONSE": settled, "Retry-After": "5"}, b"{}")
        yield _wire({}, json.dumps({"detail": {"error": words[0], "reason": words[0]}}).encode())
    for said in (
        {"remaining": 97, "total": "100", "expires_at": "2030-01-01T00:00:00Z"},
        {"credits": {"totalRemaining": 5, "totalUsed": 1}, "unit": "call"},
        {"success": True, "data": {"prepaid_balance": "1.5 ADA", "expires": 1_900_000_000}},
        {"detail": {"status": "settled", "txHash": TX}},
        {"error": "wallet_address_required_for_prepaid_batches"},
    ):
        yield _wire({"content-type": "application/json"}, json.dumps(said).encode(), 200)


def provider() -> Iterator[bytes]:
    moved = {"hash": TX, "inputs": [spent_row(1), spent_row(2, collateral=True)], "outputs": [made_row(0)]}
    latest = {**LATEST, "hash": "cd" * 32}
    tokens = utxo_row(3, amount=[{"unit": "lovelace", "quantity": "5"}, {"unit": "0f" * 28, "quantity": "9" * 19}])
    bodies = (
        *(latest, latest, TRANSACTION, GENESIS, PARAMETERS, [utxo_row(1), tokens], [tx_row(2), tx_row(1)]),
        *(moved, {"valid_contract": True}),
    )
    for call in range(len(PARSERS)):
        yield bytes((16 * call, 0)) + json.dumps(bodies[call]).encode()
    yield bytes((0, 3)) + json.dumps({"status_code": 404, "error": "Not Found", "message": "none"}).encode()
    for answer, _ in ANSWERS.values():
        if answer.status in PROVIDER_STATUSES and len(answer.body) < 4000:
            yield bytes((0, PROVIDER_STATUSES.index(answer.status))) + answer.body


def address() -> Iterator[bytes]:
    for network in NETWORKS.values():
        for known in (
            payee(1, network_id=network.network_id),
            payee(1, base=False, network_id=network.network_id),
        ):
            yield b"\0" + known.text.encode()
            yield bytes((1 if network.network_id == 0 else 5,)) + known.raw
            yield bytes((2,)) + known.raw
            yield bytes((3,)) + known.raw
    yield from (b"\0" + text.encode() for text in (*BYRON, OWN.text.upper(), "addr_test1", "", "é"))
    for kind in range(16):
        yield bytes((1, kind << 4)) + bytes(56 if kind in (0, 1, 2, 3) else 28)
    yield bytes((9, 0xE0)) + bytes(28)


def cbor() -> Iterator[bytes]:
    yield b"\0" + RAW
    yield b"\1" + PLAN.body
    for bend in BENT.values():
        body = body_of(PLAN)
        bend(body)
        raw = signed(body)
        yield b"\0" + raw
        yield b"\1" + raw[1 : 1 + len(cbor2.dumps(cbor2.loads(raw)[0], canonical=True))]
    yield from (b"\0" + raw for raw in witness_bends().values() if len(raw) < 2000)


def http() -> Iterator[bytes]:
    ok = b"HTTP/1.1 200 OK\r\n"
    for answer in (
        ok + b"Content-Length: 2\r\n\r\nok",
        ok + b"Transfer-Encoding: chunked\r\n\r\n4;a=b\r\nwiki\r\n0\r\nX-Trailer: 1\r\n\r\n",
        ok + b"Connection: close, X-Hop\r\nX-Hop: 1\r\n\r\nto the end",
        ok + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ok + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ok + b"Content-Length: 9\r\n\r\nshort",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 402 Payment Required\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\nX-Invoice-Id: inv-1\r\nX-Payagent-State: settled\r\n\r\n{}",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b'HTTP/1.1 304 Not Modified\r\nETag: "1"\r\n\r\n',
        b"HTTP/1.0 200 OK\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\r\nold",
        b"HTTP/1.1 418 Short And Stout\r\nServer: theirs\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"",
    ):
        yield b"\0" + answer
        yield b"\7" + answer


SEEDS = {"body402": body402, "provider": provider, "address": address, "cbor": cbor, "http": http}
