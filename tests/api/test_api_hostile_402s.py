"""Every hostile 402, over real HTTP to the running API: refused with its code, and nothing is signed."""

import base64
import json
import time

import pytest
from kit.agent import DEVNET, World, daily, with_terms
from kit.api import Api, served
from kit.effort import pick
from kit.hostile_402s import OTHER_POLICY, TOKEN, TOKEN_DECIMALS, Hostile, address, bases, hostile_402s
from kit.hostile_x402 import hostile_x402s

from payagent.agent.payments import intake
from payagent.core.problems import name_of

PAY_TO = address(DEVNET, 0, 0x50)


def _exact(api: Api, row: Hostile) -> bytes:
    """The 402 byte by byte."""
    raw = base64.b64encode(row.raw).decode()
    response = {"status": row.status, "headers": row.headers, "body_base64": raw}
    return json.dumps({"origin": api.world.origin, "response": response}).encode()


def _embedded(api: Api, row: Hostile) -> bytes:
    """The 402's bytes put where the JSON value belongs, by a client that does not look at them."""
    head = json.dumps({"origin": api.world.origin, "response": {"status": row.status, "headers": row.headers}})
    return head[:-2].encode() + b', "body": ' + row.raw + b"}}"


async def _code(api: Api, content: bytes) -> str:
    answer = await api.http.post("/v1/payments", content=content, headers={"content-type": "application/json"})
    assert answer.status_code in (201, 200) or answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code < 500, answer.text
    return str(name_of(answer.json().get("code", answer.status_code), answer.json().get("reason")))


def _rows(world: World) -> list[Hostile]:
    """The table. Rows that only the agent can refuse get their own invoice ids, except `terms_changed`."""
    rows = hostile_402s(DEVNET, PAY_TO, world.address, time.time_ns() // 1_000_000)
    rows += hostile_x402s(DEVNET, PAY_TO, world.address)
    return [
        row
        if row.layer == "dialect" or row.code == "terms_changed"
        else Hostile(
            row.id, row.status, row.headers, row.body_text.replace("inv-1", f"inv-x{n}"), row.code, row.base
        )
        for n, row in enumerate(rows)
    ]


async def test_no_hostile_402_is_paid(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "REFUSALS_AT_ONCE", 10_000)  # one app presents them all
    limits = daily(1_000_000_000, 100_000_000_000) + daily(10**12, 10**15, TOKEN)
    terms = with_terms(limits=limits, decimals={"lovelace": 6, TOKEN: TOKEN_DECIMALS})
    world.fund(41_000_000_000_000_000)  # so that no row is refused for lack of funds
    world.fund(5_000_000, assets={TOKEN: 50_000_000, OTHER_POLICY: 50_000_000})
    async with world.run(terms=terms) as run:
        await run.run_pass()
        async with served(run) as api:
            rows = _rows(world)
            plain = next(row for row in rows if row.code == "terms_changed")
            base = bases(DEVNET, PAY_TO, 0)["plain"]
            rows.remove(plain)
            told = {row.id: (await _code(api, _exact(api, row)), row.code) for row in rows}
            assert {id: codes for id, codes in told.items() if codes[0] != codes[1]} == {}
            told = {
                row.id: (await _code(api, _embedded(api, row)), row.code)
                for row in rows[:: pick(3, 1)]
                if row.id != "E1-spaces"
            }
            strict = "invoice_invalid/json"
            assert {id: codes for id, codes in told.items() if codes[0] not in (codes[1], strict)} == {}
            assert run.context.conn.execute("SELECT COUNT(*) FROM attempts").fetchone() == (0,)
            assert run.context.conn.execute("SELECT COUNT(*) FROM reservations").fetchone() == (0,)

            honest = Hostile("base", 402, base.headers, base.text, "201")
            assert await _code(api, _exact(api, honest)) == "201"
            assert await _code(api, _exact(api, plain)) == "terms_changed"
            assert run.context.conn.execute("SELECT COUNT(*) FROM attempts").fetchone() == (1,)
