"""Channels on the chain: opening, adding, closing, getting back what is left, and what may go wrong in between."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
from kit.agent import ADA, APP, Run, put
from kit.channel_agent import DEPOSIT, PRICE, ChannelWorld, buy, channel_world, hear, open_channel, parts, steps
from kit.channel_rows import a_channel, put_channels

from payagent.agent.chain_sync.external_spends import unfreeze
from payagent.agent.channels.positions import address_of, terms_of
from payagent.agent.operator.pause import pause, unpause
from payagent.core.channel import CallState, Channel, ChannelCall, ChannelPhase
from payagent.core.ledger import channel_account
from payagent.core.merchant_rules import MerchantRules
from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.devnet.ledger import decode_tx
from payagent.devnet.server import Devnet
from payagent.settings.schema import ChannelSettings
from payagent.store.rows import channels as rows
from payagent.wallet.channel_tx import ChannelStage, channel_datum, script_address


@pytest.fixture
def at(tmp_path: Path) -> Iterator[ChannelWorld]:
    with channel_world(tmp_path) as at:
        at.world.fund(30 * ADA, 10 * ADA, 10 * ADA)
        yield at


def now(run: Run, channel: Channel) -> Channel:
    return rows.channel(run.context.conn, channel.id)


def in_channel(run: Run) -> int:
    """What the books say is in the channel."""
    return run.books().get(channel_account(run.world.origin), {}).get("lovelace", 0)


async def test_a_channel_is_opened_added_to_closed_and_returns_after_its_delay(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        assert in_channel(run) == at.held() == DEPOSIT
        assert run.owned() == at.world.on_chain()
        assert 3 * ADA < channel.capacity < DEPOSIT
        await parts(run).steps.add(APP, channel.id, 2 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        assert in_channel(run) == at.held() == DEPOSIT + 2 * ADA
        assert now(run, channel).capacity == channel.capacity + 2 * ADA
        closing, closes = await parts(run).steps.close(APP, channel.id)
        assert closing.phase is ChannelPhase.CLOSING
        (output,) = closes.outputs  # the money stays at the script until the channel ends
        assert (output.address, output.units) == (address_of(channel.script_hash).text, DEPOSIT + 2 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        elapse_at_ms = now(run, channel).elapse_at_ms
        assert elapse_at_ms is not None
        at.world.clock.ahead_ms += elapse_at_ms - run.context.ports.clock.now_ms() - 30_000
        await run.settle_down()
        assert [step.step for step in steps(run, channel)] == ["open", "add", "close"]
        at.world.clock.ahead_ms += 60_000
        await run.settle_down(2)
        ended = now(run, channel)
        assert (ended.phase, ended.returned, ended.claimed) == (ChannelPhase.ENDED, DEPOSIT + 2 * ADA, 0)
        assert in_channel(run) == at.held() == 0
        assert run.owned() == at.world.on_chain()
        assert all(step.state is State.CONFIRMED for step in steps(run, channel))


async def test_an_opening_that_a_rollback_takes_is_sent_again_and_opens_the_same_channel(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        at.world.control("faults", on="submit", kind="drop")
        at.world.control("rollback", depth=1)
        await run.settle_down(2)
        assert now(run, channel).phase is ChannelPhase.OPENING
        assert in_channel(run) == at.held() == 0
        assert run.owned()["lovelace"] == at.world.on_chain()["lovelace"]
        at.world.control("faults", clear=True)
        await run.pass_time(3, 10)
        assert now(run, channel).phase is ChannelPhase.OPEN
        assert in_channel(run) == at.held() == DEPOSIT
        assert run.owned() == at.world.on_chain()


async def test_a_claim_of_the_merchant_moves_the_channel_and_what_it_has_left(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await buy(run, at, await open_channel(run, at), 3)
        assert in_channel(run) == DEPOSIT - 3 * PRICE
        copy_of(at, channel, 40 * ADA)
        at.mood(claim="sub")
        await run.settle_down()
        after = now(run, channel)
        assert after.ref != channel.ref
        assert (after.claimed, after.count, after.signed) == (3 * PRICE, 3 * PRICE, 3 * PRICE)
        assert after.capacity == channel.capacity
        assert after.phase is ChannelPhase.OPEN
        assert at.held() - 40 * ADA == in_channel(run) == DEPOSIT - 3 * PRICE
        await buy(run, at, after)


async def test_what_the_merchant_settles_is_spent_and_the_rest_returns_at_once(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await buy(run, at, await open_channel(run, at), 2)
        await parts(run).steps.close(APP, channel.id)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        at.mood(claim="settle")
        await run.settle_down(3)
        ended = now(run, channel)
        assert (ended.phase, ended.returned) == (ChannelPhase.ENDED, DEPOSIT - 2 * PRICE)
        assert [step.step for step in steps(run, channel)] == ["open", "close", "end"]
        assert in_channel(run) == at.held() == 0
        assert run.owned() == at.world.on_chain()


async def test_a_close_that_the_merchants_claim_overtakes_is_cancelled_and_made_again(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await buy(run, at, await open_channel(run, at), 2)
        at.world.control("faults", on="submit", kind="drop")
        _, overtaken = await parts(run).steps.close(APP, channel.id)
        await run.agent.submitter.drain(60)
        at.mood(claim="sub")
        await run.settle_down()
        at.world.control("faults", clear=True)
        assert run.state(overtaken.id) is State.CANCELLING
        await run.pass_time(6, 61)
        assert run.state(overtaken.id) is State.VOID
        assert now(run, channel).elapse_at_ms is not None
        assert at.held() == in_channel(run) == DEPOSIT - 2 * PRICE
        assert run.owned() == at.world.on_chain()


async def test_an_exit_that_a_rollback_takes_is_sent_again(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await buy(run, at, await open_channel(run, at), 2)
        await parts(run).steps.close(APP, channel.id)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        at.mood(claim="settle")
        await run.settle_down(3)
        at.world.control("faults", on="submit", kind="drop")
        at.world.control("rollback", depth=2)
        await run.settle_down(2)
        assert now(run, channel).phase is ChannelPhase.CLOSING
        assert in_channel(run) == at.held() == DEPOSIT - 2 * PRICE
        at.world.control("faults", clear=True)
        await run.pass_time(3, 10)
        assert now(run, channel).phase is ChannelPhase.ENDED
        assert run.owned() == at.world.on_chain()


class Killed(Exception):  # noqa: N818  a killed process would not even raise
    pass


async def test_an_opening_that_was_held_and_never_signed_gives_back_its_money(at: ChannelWorld) -> None:
    signs = at.world.channel_signer

    class Dying:
        def answer(self, request: bytes) -> bytes:
            if b'"step"' in request:
                raise Killed
            assert signs is not None
            return signs.answer(request)

    at.world.channel_signer = Dying()  # type: ignore[assignment]
    async with at.world.run() as run:
        await run.run_pass()
        hear(run, at)
        with pytest.raises(Killed):
            await parts(run).steps.open(APP, run.world.origin)
        assert run.books()["held"]["lovelace"] > DEPOSIT
    at.world.channel_signer = signs
    async with at.world.run() as run:
        await run.settle_down(2)
        (channel,) = rows.channels_page(run.context.conn, None, 10)
        assert channel[1].phase is ChannelPhase.VOID
        assert run.state(steps(run, channel[1])[0].payment_id) is State.REJECTED
        assert len(run.selectable()) == 3
        assert at.held() == 0
        await open_channel(run, at)


async def test_an_opening_that_never_lands_ends_as_void_with_its_channel(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        hear(run, at)
        at.world.control("faults", on="submit", kind="drop")
        channel, opening = await parts(run).steps.open(APP, run.world.origin)
        await run.agent.submitter.drain(60)
        at.world.clock.ahead_ms += 1_900_000
        at.world.control("faults", clear=True)
        await run.pass_time(6, 61)
        assert run.state(opening.id) is State.VOID
        assert now(run, channel).phase is ChannelPhase.VOID
        assert in_channel(run) == at.held() == 0
        assert run.owned() == at.world.on_chain()


@pytest.mark.parametrize(
    ("setting", "caps", "of_merchant"),
    [
        ("channels.locked_max", {"locked_max": "4 ADA"}, {}),
        ("channels.locked_per_day", {"locked_per_day": "4 ADA"}, {}),
        ("merchants.t.channel.locked_max", {}, {"locked_max": "4 ADA"}),
    ],
)
async def test_a_cap_of_what_is_locked_refuses_an_opening(
    at: ChannelWorld, setting: str, caps: dict[str, str], of_merchant: dict[str, str]
) -> None:
    script = at.world.terms.channels
    assert script is not None
    at.caps(ChannelSettings(enabled=True, scripts=script.scripts, **caps), **of_merchant)  # type: ignore[arg-type]
    async with at.world.run() as run:
        await run.run_pass()
        hear(run, at)
        with pytest.raises(Refused) as refused:
            await parts(run).steps.open(APP, run.world.origin)
        assert (refused.value.code, refused.value.context["limit"]) == ("limit_exceeded", setting)
        assert run.books().get("held", {}).get("lovelace", 0) == 0
        assert len(run.selectable()) == 3


async def test_the_cap_of_all_channels_counts_those_of_other_accounts(at: ChannelWorld) -> None:
    script = at.world.terms.channels
    assert script is not None
    at.caps(ChannelSettings(enabled=True, scripts=script.scripts, locked_max="8 ADA"))  # type: ignore[arg-type, call-arg]
    async with at.world.run() as run:
        await run.run_pass()
        hear(run, at)
        other = a_channel(1, "https://gone.example", "open")
        await run.context.write("test", lambda unit: put_channels(unit, replace(other, account=1)))
        with pytest.raises(Refused) as refused:
            await parts(run).steps.open(APP, run.world.origin)
        assert (refused.value.code, refused.value.context["limit"]) == ("limit_exceeded", "channels.locked_max")


async def test_an_addition_counts_what_is_locked_already(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at, 15 * ADA)
        with pytest.raises(Refused, match=r"channel\.locked_max"):
            await parts(run).steps.add(APP, channel.id, 5 * ADA + 1)


async def test_a_merchant_has_one_channel_and_a_repeated_key_finds_its_opening(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        hear(run, at)
        first, opening = await parts(run).steps.open(APP, run.world.origin, key="one")
        again, same = await parts(run).steps.open(APP, run.world.origin, key="one")
        assert (again.id, same.id) == (first.id, opening.id)
        with pytest.raises(Refused, match="wrong_state"):
            await parts(run).steps.open(APP, run.world.origin)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        with pytest.raises(Refused, match="idempotency_key_reused"):
            await parts(run).steps.close(APP, first.id, key="one")
        await parts(run).steps.add(APP, first.id, ADA, key="two")
        with pytest.raises(Refused, match="idempotency_key_reused"):
            await parts(run).steps.add(APP, first.id, 2 * ADA, key="two")


@pytest.mark.parametrize("mood", ["swap_provider", "swap_script"])
async def test_an_offer_that_the_config_does_not_trust_opens_nothing(at: ChannelWorld, mood: str) -> None:
    at.mood(mood=mood)
    async with at.world.run() as run:
        await run.run_pass()
        with pytest.raises(Refused, match="channel_unoffered"):
            await parts(run).steps.open(APP, run.world.origin)
        hear(run, at)
        with pytest.raises(Refused, match="channel_unoffered"):
            await parts(run).steps.open(APP, run.world.origin)


async def test_a_merchant_that_answers_no_call_for_a_week_has_its_channel_closed(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        intent = run.context.payment(steps(run, channel)[0].payment_id).intent.id
        call = promised(channel, intent, run.context.ports.clock.now_ms())
        await run.context.write("call", lambda unit: rows.add_call(unit, call, call.created_at_ms))
        await run.settle_down()
        assert now(run, channel).phase is ChannelPhase.OPEN
        at.world.clock.ahead_ms += 7 * 86_400_000
        await run.settle_down(3)
        closing = now(run, channel)
        assert (closing.phase, closing.problem) == (
            ChannelPhase.CLOSING,
            "the merchant has not answered a call for 7 days",
        )
        assert closing.elapse_at_ms is not None


def promised(channel: Channel, intent: str, now_ms: int) -> ChannelCall:
    return ChannelCall(
        *(0, "pay_call", channel.id, APP, intent, channel.ref or "", PRICE, PRICE, PRICE, "{}"),
        *(CallState.PROMISED, None, now_ms, now_ms),
    )


async def test_a_lost_ledger_finds_its_channel_again_and_gets_back_what_is_left(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await buy(run, at, await open_channel(run, at), 2)
        at.mood(claim="sub")
        await run.settle_down()
        copy_of(at, now(run, channel), ADA * 3)
    put(at.world, None)
    async with at.world.run() as run:
        await run.run_pass()
        assert rows.channels_page(run.context.conn, None, 10) == []
        await unfreeze(run.context, APP)  # the ledger does not know its own opening either
        (found,) = await parts(run).steps.recover(APP)
        assert (found.id, found.phase) == (channel.id, ChannelPhase.CLOSING)
        assert await parts(run).steps.recover(APP) == []
        await run.settle_down(2)
        at.world.clock.ahead_ms += 1_300_000
        await run.settle_down(3)
        ended = now(run, channel)
        assert (ended.phase, ended.returned) == (ChannelPhase.ENDED, DEPOSIT - 2 * PRICE)
        assert at.held() == 3 * ADA
        assert in_channel(run) == 0
        assert run.owned() == at.world.on_chain()


def copy_of(at: ChannelWorld, channel: Channel, lovelace: int) -> None:
    """Somebody else pays the script with the constants of our channel."""
    terms = terms_of(channel, at.world.account.address.payment_key_hash)
    datum = channel_datum(terms, ChannelStage("opened", 0, None))
    output = {0: script_address(terms.script_hash), 1: lovelace, 2: [1, cbor2.CBORTag(24, datum)]}
    tx = decode_tx(b"\x84\xa3\x00\x80\x01\x81" + cbor2.dumps(output) + b"\x02\x00\xa0\xf5\xf6")

    def put_copy(devnet: Devnet) -> None:
        devnet.node.chain.faucet_ids.add(tx.tx_id)
        devnet.node.chain._admit(tx)
        devnet.node.make_blocks(1)

    at.world.devnet.run(put_copy)


async def test_calls_that_are_charged_and_not_served_close_the_channel(at: ChannelWorld) -> None:
    rules = MerchantRules(stop_after_unserved=1)
    merchants = at.world.terms.merchants
    at.world.terms = replace(
        at.world.terms, merchants={name: replace(one, rules=rules) for name, one in merchants.items()}
    )
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        intent = run.context.payment(steps(run, channel)[0].payment_id).intent.id
        call = replace(promised(channel, intent, 1), state=CallState.PAID_NOT_SERVED, charged=PRICE)
        await run.context.write("call", lambda unit: rows.add_call(unit, call, 1))
        await run.settle_down(2)
        assert now(run, channel).problem == "the merchant charged 1 calls in a row and did not serve them"
        assert now(run, channel).elapse_at_ms is not None


async def test_a_pause_holds_back_an_exit_and_its_end_lets_it_go_on(at: ChannelWorld) -> None:
    async with at.world.run() as run:
        await run.run_pass()
        channel = await open_channel(run, at)
        await pause(run.context, APP, "a test")
        with pytest.raises(Refused, match="paused"):
            await parts(run).steps.close(APP, channel.id)
        await run.settle_down()
        assert now(run, channel).phase is ChannelPhase.OPEN
        await unpause(run.context, APP)
        await parts(run).steps.close(APP, channel.id)
        assert now(run, channel).phase is ChannelPhase.CLOSING


def test_where_channels_are_off_none_of_their_modules_is_imported() -> None:
    program = (
        "import sys; import payagent.daemon.compose, payagent.agent.chain_sync.sync; "
        "print([name for name in sys.modules if 'channel' in name or 'x402_batch' in name])"
    )
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
