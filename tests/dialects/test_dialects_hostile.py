"""Every hostile 402 is refused with its code, and the valid 402 it was made from is accepted."""

from kit.hostile_402s import TOKEN, TOKEN_DECIMALS, Hostile, address, bases, hostile_402s
from kit.hostile_x402 import hostile_x402s, x402_bases

from payagent.core.address import parse_address
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.dialects import Reading, parse_response, read_offers

NOW_MS = 1_795_527_200_123
SETS = {}
for _name in ("devnet", "preprod", "mainnet"):
    _network = NETWORKS[_name]
    _pay_to, _own = address(_network, 0, 0x50), address(_network, 0, 0x77)
    SETS[_name] = (
        bases(_network, _pay_to, NOW_MS) | x402_bases(_network, _pay_to),
        hostile_402s(_network, _pay_to, _own, NOW_MS) + hostile_x402s(_network, _pay_to, _own),
        _own,
    )

DIALECT_ROWS = [(name, row) for name, (_, rows, _) in SETS.items() for row in rows if row.layer == "dialect"]


def reading(name: str) -> Reading:
    network = NETWORKS[name]
    return Reading(
        origin="https://api.example.com",
        network=network,
        split_mode=None,
        received_at_ms=NOW_MS,
        decimals={"lovelace": 6, TOKEN: TOKEN_DECIMALS},
        own=parse_address(SETS[name][2], network),
    )


def test_the_valid_402_behind_each_hostile_one_is_accepted() -> None:
    for name, (known, _, _) in SETS.items():
        for key, base in known.items():
            (invoice,) = read_offers(parse_response(402, base.headers, base.text.encode()), reading(name))
            assert invoice.outputs[0].address.text == address(NETWORKS[name], 0, 0x50), (name, key)
            assert invoice.total_units in (10_000_000, 12_000_000), (name, key)


def test_a_hostile_402_is_refused_with_its_code() -> None:
    assert len(DIALECT_ROWS) > 1000
    wrong = {(name, row.id): said for name, row in DIALECT_ROWS if (said := outcome(name, row)) != row.code}
    assert wrong == {}


def outcome(name: str, row: Hostile) -> str:
    """The code of the refusal, which says printably and shortly why."""
    try:
        read_offers(parse_response(row.status, row.headers, row.raw), reading(name))
    except Refused as refused:
        is_shown = len(refused.detail) < 2_000 and refused.detail.isprintable()
        return refused.name if is_shown else f"{refused.name}: {refused.detail!r}"
    return "read as an invoice"


def test_402s_that_only_the_agent_can_refuse_are_read_as_invoices() -> None:
    known, rows, _ = SETS["preprod"]
    agent = [row for row in rows if row.layer == "agent"]
    assert {row.code for row in agent} == {
        "asset_not_allowed",
        "invoice_expired",
        "limit_exceeded",
        "invoice_invalid/below_min_ada",
        "terms_changed",
    }
    for row in agent:
        read_offers(parse_response(row.status, row.headers, row.raw), reading("preprod"))
    plain = known["plain"]
    (before,) = read_offers(parse_response(402, plain.headers, plain.text.encode()), reading("preprod"))
    changed = next(row for row in agent if row.code == "terms_changed")
    (after,) = read_offers(parse_response(402, changed.headers, changed.raw), reading("preprod"))
    assert after.invoice_id == before.invoice_id
    assert after.terms_hash != before.terms_hash


def test_the_hostile_402s_cover_the_threat_model() -> None:
    known, rows, _ = SETS["preprod"]
    assert len(rows) >= 400
    assert len({row.id for row in rows}) == len(rows)
    threats = {row.id.partition("-")[0] for row in rows}
    assert threats >= {"A1", "A2", "A3", "A4", "A5", "B1", "B2", "B3", "B5", "C1", "C2", "C3", "D1", "D3", "D4"}
    assert threats >= {f"E{number}" for number in range(1, 8)} | {f"X{number}" for number in range(1, 6)}
    assert all(Refused(row.code, "") for row in rows)
    for row in rows:
        if row.base:
            base = known[row.base]
            assert (row.body_text, row.headers, row.status) != (base.text, base.headers, 402), row.id
