"""Sending everything out of the wallet: a token that may not leave does not keep the rest here."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, daily, with_terms, world_with_clock
from kit.payments import somebody_else

from payagent.agent.utxos.transfers import left_behind_of
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.signer.policy import Policy, clocks_of
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.keys import Account

DUST, CLOSED, KNOWN = "aa" * 28, "bb" * 28, "cc" * 28
"""Tokens without a cap, with a cap of zero, and with a cap."""

CAPS = {"lovelace": 99 * ADA, CLOSED: 0, KNOWN: 50}
capped = with_terms(caps=CAPS)


class Strict:
    """A signer in this process that applies caps like the real signer process."""

    def __init__(self, account: Account) -> None:
        self._signer = account.signer
        self.public_key = account.signer.public_key
        self._policy = Policy(account.address.raw, CAPS, {"lovelace": 999 * ADA, KNOWN: 50}, NO_CLOCKS)

    def sign(self, body: bytes, paid: int) -> bytes:
        self._policy.admit(body, paid)
        return self._signer.sign(body, paid)


NO_CLOCKS = clocks_of(None, lambda: 0.0, lambda: 0.0)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world:
        yield world


async def emptied(run: Run) -> PaymentRow:
    row, _ = await run.agent.transfers.send_all(APP, somebody_else(run.world))
    await run.agent.submitter.drain(60)
    await run.settle_down()
    assert run.state(row.id) is State.CONFIRMED
    assert run.owned() == run.world.on_chain()
    told = verify(run.context.conn, Owner(run.context.config.own, DEVNET))
    assert [one for one in told if isinstance(one, AuditFinding)] == []
    return row


async def test_send_all_sends_everything_except_utxos_with_tokens_that_may_not_leave(world: World) -> None:
    world.fund(20 * ADA, 30 * ADA)
    world.fund(5 * ADA, assets={KNOWN: 50})
    world.fund(1_500_000, assets={DUST: 1})
    world.fund(2 * ADA, assets={CLOSED: 7, KNOWN: 1})
    async with world.run(terms=capped, signer=Strict(world.account)) as run:
        await run.run_pass()
        row = await emptied(run)
        assert world.on_chain() == {"lovelace": 3_500_000, DUST: 1, CLOSED: 7, KNOWN: 1}
        assert {(one.asset, one.units) for one in row.outputs} == {
            ("lovelace", 55 * ADA - (row.attempt.fee_lovelace or 0)),
            (KNOWN, 50),
        }
        behind = left_behind_of(run.context.conn, row.id)
        assert behind is not None
        assert (behind["utxos"], behind["lovelace"], behind["assets"]) == (2, "3500000", [DUST, CLOSED])


async def test_send_all_leaves_nothing_behind_when_everything_may_leave(world: World) -> None:
    world.fund(20 * ADA)
    world.fund(5 * ADA, assets={KNOWN: 50})
    async with world.run(terms=capped, signer=Strict(world.account)) as run:
        await run.run_pass()
        row = await emptied(run)
        assert world.on_chain() == {}
        assert left_behind_of(run.context.conn, row.id) is None


async def test_a_repeated_send_all_reports_what_it_left_behind(world: World) -> None:
    world.fund(20 * ADA)
    world.fund(1_500_000, assets={DUST: 1})
    async with world.run(terms=capped) as run:
        await run.run_pass()
        row, is_new = await run.agent.transfers.send_all(APP, somebody_else(world), "all")
        again, is_new_again = await run.agent.transfers.send_all(APP, somebody_else(world), "all")
        assert (again.id, is_new, is_new_again) == (row.id, True, False)
        behind = left_behind_of(run.context.conn, again.id)
        assert behind is not None
        assert behind["utxos"] == 1


@pytest.mark.parametrize("pure", [(), (1_000_000,)], ids=["nothing else", "crumbs"])
async def test_send_all_is_refused_when_only_unsendable_tokens_and_dust_are_there(
    world: World, pure: tuple[int, ...]
) -> None:
    world.fund(9 * ADA, assets={DUST: 1})
    world.fund(*pure)
    async with world.run(terms=capped) as run:
        await run.run_pass()
        with pytest.raises(Refused, match="nothing is left to send but 1 UTxO with 9 ADA") as refused:
            await run.agent.transfers.send_all(APP, somebody_else(world))
        assert (refused.value.name, refused.value.context["asset"]) == ("asset_not_allowed", DUST)
        assert "--amount" in refused.value.detail


async def test_send_all_is_refused_while_change_is_pending(world: World) -> None:
    world.fund(50 * ADA)
    world.fund(1_500_000, assets={DUST: 1})
    async with world.run(terms=capped) as run:
        await run.run_pass()
        await run.agent.transfers.send(APP, somebody_else(world), "lovelace", 9 * ADA)
        with pytest.raises(Refused) as refused:
            await run.agent.transfers.send_all(APP, somebody_else(world))
        assert refused.value.name == "funds_pending"


async def test_ada_held_with_an_unsendable_token_can_be_sent_by_amount(world: World) -> None:
    world.fund(9 * ADA, assets={DUST: 1})
    async with world.run(terms=capped, signer=Strict(world.account)) as run:
        await run.run_pass()
        await run.agent.transfers.send(APP, somebody_else(world), "lovelace", 7 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert world.on_chain()[DUST] == 1
        assert world.on_chain()["lovelace"] < 2 * ADA


async def test_send_all_to_our_own_address_gathers_every_utxo(world: World) -> None:
    world.fund(20 * ADA, 3 * ADA)
    world.fund(1_500_000, assets={DUST: 1})
    async with world.run(terms=capped, signer=Strict(world.account)) as run:
        await run.run_pass()
        row, _ = await run.agent.transfers.send_all(APP, world.account.address)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert len(run.context.utxos) == 1
        assert run.owned() == {"lovelace": 24_500_000 - (row.attempt.fee_lovelace or 0), DUST: 1}
        assert left_behind_of(run.context.conn, row.id) is None


async def test_a_payment_may_spend_a_utxo_with_an_unsendable_token_and_returns_the_token(world: World) -> None:
    world.settings(price=str(4 * ADA), splits=[])
    world.fund(3 * ADA)
    world.fund(3 * ADA, assets={DUST: 1})
    terms = with_terms(caps=CAPS, limits=daily(9 * ADA, 99 * ADA))
    async with world.run(terms=terms, signer=Strict(world.account)) as run:
        await run.run_pass()
        row = await run.pay()
        await run.settle_down()
        assert run.state(row.id) is State.CONFIRMED
        assert len(queries.attempts(run.context.conn, row.id)[0].inputs) == 2
        assert world.on_chain()[DUST] == 1


async def test_send_all_above_the_transaction_cap_is_refused_and_says_what_to_do(world: World) -> None:
    world.fund(60 * ADA, 60 * ADA)
    async with world.run(terms=capped) as run:
        await run.run_pass()
        with pytest.raises(Refused, match=r"--amount.*limits\.signed_per_day.*start the daemon again") as refused:
            await run.agent.transfers.send_all(APP, somebody_else(world))
        assert refused.value.name == "limit_exceeded"
        assert refused.value.context["limit"] == "per_transaction"
