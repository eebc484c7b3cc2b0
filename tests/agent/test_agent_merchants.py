"""Merchants added and removed at run time: they survive a restart and override the config file."""

from dataclasses import replace

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World

from payagent.agent.base.config import AgentConfig
from payagent.agent.operator.merchants import add_merchant, remove_merchant
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import merchants
from payagent.store.rows.merchants import MerchantRow


def without_merchants(terms: AgentConfig) -> AgentConfig:
    return replace(terms, merchants={})


def code_of(refused: pytest.ExceptionInfo[Refused]) -> str:
    return refused.value.name


def findings(run: Run) -> list[AuditFinding]:
    told = verify(run.context.conn, Owner(run.context.config.own, DEVNET))
    return [one for one in told if isinstance(one, AuditFinding)]


async def test_an_added_merchant_can_be_paid_until_it_is_removed_also_after_a_restart(
    world: World,
) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run(terms=without_merchants) as run:
        await run.run_pass()
        with pytest.raises(Refused) as refused:
            await run.pay()
        assert code_of(refused) == "merchant_not_allowed"
        await add_merchant(run.context, APP, "shop", {"origin": world.origin, "partner": "demo"})
        assert (await run.pay()).state is State.IN_FLIGHT
    async with world.run(terms=without_merchants) as run:
        await run.run_pass()
        assert (await run.pay("again")).state is State.IN_FLIGHT
        merchant = run.context.config.merchant(world.origin)
        assert (merchant.name, merchant.partner, merchant.is_from_file) == ("shop", "demo", False)
        await run.settle_down()
        await remove_merchant(run.context, APP, "shop")
        with pytest.raises(Refused) as refused:
            await run.pay("no more")
        assert code_of(refused) == "merchant_not_allowed"
        assert findings(run) == []
    async with world.run(terms=without_merchants) as run:
        assert run.context.config.merchants == {}


async def test_a_name_or_origin_already_in_use_is_refused_also_if_the_file_has_it(world: World) -> None:
    async with world.run() as run:
        for name, origin in (("t", "https://other.example"), ("other", world.origin)):
            with pytest.raises(Refused) as refused:
                await add_merchant(run.context, APP, name, {"origin": origin})
            assert code_of(refused) == "already_exists/merchant"
        with pytest.raises(Refused) as refused:
            await remove_merchant(run.context, APP, "t")
        assert code_of(refused) == "not_found"
        await add_merchant(run.context, APP, "other", {"origin": "https://other.example"})
        with pytest.raises(Refused) as refused:
            await add_merchant(run.context, APP, "other", {"origin": "https://another.example"})
        assert code_of(refused) == "already_exists/merchant"


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("Shop", {"origin": "https://a.example"}),
        ("shop", {"origin": "http://a.example"}),
        ("shop", {"origin": "https://a.example/path"}),
        ("shop", {"origin": "https://a.example", "timeout_s": 0}),
        ("shop", {"origin": "https://a.example", "resource_origins": ["https://a.example/path"]}),
        ("shop", {"origin": "https://a.example", "resource_origins": "https://b.example"}),
        ("shop", {"origin": "https://a.example", "prooof": "tx_hash"}),
        ("shop", {}),
    ],
)
async def test_a_merchant_that_the_config_file_would_reject_cannot_be_added(
    world: World, name: str, table: dict[str, object]
) -> None:
    async with world.run() as run:
        with pytest.raises(Refused) as refused:
            await add_merchant(run.context, APP, name, table)
        assert code_of(refused) == "bad_request"
        assert merchants.all_merchants(run.context.conn) == []


async def test_an_added_merchant_overrides_the_files_merchant_of_the_same_origin(
    world: World,
) -> None:
    async with world.run(terms=without_merchants) as run:
        await add_merchant(run.context, APP, "mine", {"origin": world.origin, "ready": "submitted"})
    async with world.run() as run:
        assert run.context.config.merchant(world.origin).name == "mine"
        await remove_merchant(run.context, APP, "mine")
        assert run.context.config.merchant(world.origin).name == "t"


async def test_verify_finds_a_merchant_row_that_the_daemon_did_not_write(world: World) -> None:
    async with world.run() as run:
        await add_merchant(run.context, APP, "other", {"origin": "https://other.example"})
        assert findings(run) == []
        row = MerchantRow("evil", "https://evil.example", {"origin": "https://evil.example"})
        await run.context.write("evil", lambda unit: merchants.add(unit, row))
        assert [(one.table, one.row) for one in findings(run)] == [("merchants", "evil")]
