"""Two providers, one of which lies: a payment lands once, is confirmed in time, and no lie is booked.

The devnet and the agent share one clock, so the ages of tips are true.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path

import httpx
import pytest
from kit.agent import ADA, APP, Relay, Run, World, with_terms, world_with_clock
from kit.effort import long_only, pick
from kit.http import NO_TLS
from kit.providers import FAKE, providers, raised, tip_of, told

from payagent.agent.base.chain_view import TTL_CAP_S
from payagent.chain.adapter import Timeouts
from payagent.core.aggregate import PaymentRow
from payagent.core.payment.machine import State
from payagent.store.rows import alerts
from payagent.store.rows import attempts_and_utxos as queries

NO_SUCH = {"status_code": 404, "error": "Not Found", "message": "The requested component has not been found."}
DOWN = {"status_code": 500, "error": "Internal Server Error", "message": "down"}
IN_TIME_S = 480
"""A payment confirmed within this time leaves nearly half of the 900 s of a common invoice."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_with_clock(tmp_path) as world:
        world.settings(timeout=3000)
        world.clock.ahead_ms += 1_000_000  # so that block 0 is old
        yield world


@pytest.fixture
def liar(world: World) -> Iterator[Relay]:
    with Relay(world.devnet).serving() as relay:
        yield relay


@pytest.fixture
def honest(world: World) -> Iterator[Relay]:
    with Relay(world.devnet).serving() as relay:
        yield relay


def invent_tx(relay: Relay, tx_id: str, block: dict[str, object]) -> None:
    """Let the provider show our transaction in that block."""
    body = {"hash": tx_id, "block": block["hash"], "block_height": block["height"], "slot": block["slot"]}
    relay.tell(f"/txs/{tx_id}", 200, body)


def invent_block(relay: Relay, tx_id: str) -> None:
    """Let the provider show our transaction in an invented block at the height of the tip."""
    block = tip_of(relay) | {"hash": FAKE}
    invent_tx(relay, tx_id, block)
    relay.tell(f"/blocks/{FAKE}", 200, block)


async def settles(world: World, run: Run, row: PaymentRow) -> None:
    """Assert that the payment settles once both providers show it."""
    await pass_s(run, 900, lambda: run.state(row.id) is State.SETTLED)
    assert run.state(row.id) is State.SETTLED
    assert world.transactions() == [row.attempt.tx_id]
    assert run.owned() == world.on_chain()


def invent_utxo(relay: Relay, world: World, lovelace: int) -> None:
    page = httpx.get(f"{relay.upstream}/addresses/{world.address}/utxos", verify=NO_TLS, trust_env=False)
    rows = page.json() if page.status_code == 200 else []
    row = {
        "address": world.address,
        "tx_hash": FAKE,
        "output_index": 0,
        "amount": [{"unit": "lovelace", "quantity": str(lovelace)}],
        "block": FAKE,
        "data_hash": None,
        "inline_datum": None,
        "reference_script_hash": None,
    }
    relay.tell("/addresses/", 200, [*rows, row])


def is_dead(relay: Relay) -> None:
    relay.tell("/", 500, DOWN)


def stands_still(relay: Relay) -> None:
    relay.freeze("/blocks/latest")
    relay.tell("/txs/", 404, NO_SUCH)


def is_old(relay: Relay) -> None:
    relay.tell("/blocks/latest", 200, told(relay, "/blocks/0"))
    relay.tell("/txs/", 404, NO_SUCH)


def denies_everything(relay: Relay) -> None:
    for prefix in ("/txs/", "/blocks/", "/addresses/"):
        relay.tell(prefix, 404, NO_SUCH)
    relay.freeze("/blocks/latest")


def denies_transactions(relay: Relay) -> None:
    relay.tell("/txs/", 404, NO_SUCH)


def answers_no_transaction(relay: Relay) -> None:
    relay.tell("/txs/", 500, DOWN)


def has_other_parameters(relay: Relay) -> None:
    relay.tell("/epochs/latest/parameters", 200, told(relay, "/epochs/latest/parameters") | {"min_fee_a": 45})


def runs_ahead(relay: Relay) -> None:
    tip = tip_of(relay)
    relay.tell("/blocks/latest", 200, tip | {"height": int(str(tip["height"])) + 1000})


def runs_ahead_and_stands_by_it(relay: Relay) -> None:
    tip = tip_of(relay)
    ahead = tip | {"height": int(str(tip["height"])) + 1000, "hash": FAKE}
    relay.tell("/blocks/latest", 200, ahead)
    relay.tell(f"/blocks/{FAKE}", 200, ahead)


def is_a_little_ahead_and_stands_by_it(relay: Relay) -> None:
    """Ahead by less than slots and clocks can disprove."""
    tip = tip_of(relay)
    ahead = tip | {"height": int(str(tip["height"])) + 100, "hash": FAKE}
    relay.tell("/blocks/latest", 200, ahead)
    relay.tell(f"/blocks/{FAKE}", 200, ahead)


def is_in_the_future(relay: Relay) -> None:
    tip = tip_of(relay)
    later = tip | {"slot": int(str(tip["slot"])) + 100_000, "hash": FAKE}
    relay.tell("/blocks/latest", 200, later)
    relay.tell(f"/blocks/{FAKE}", 200, later)


def swallows(relay: Relay) -> None:
    relay.swallows = True


def answers_another_id(relay: Relay) -> None:
    relay.tell("/tx/submit", 200, FAKE)


def goes_back(relay: Relay) -> None:
    """Show an earlier block as the tip, although the later block still exists."""
    height = int(str(tip_of(relay)["height"]))
    relay.tell("/blocks/latest", 200, told(relay, f"/blocks/{height - 1}"))


def lags(relay: Relay) -> None:
    """One replica shows its tip, and the request for that block reaches a replica that lags behind."""
    tip = tip_of(relay)
    relay.tell("/blocks/latest", 200, tip)
    relay.tell(f"/blocks/{tip['hash']}", 404, NO_SUCH)


async def be_missed(world: World, run: Run, honest: Relay, looks: int) -> None:
    """For this many passes the honest provider is not usable, because its replicas lag; then it is back."""
    for _ in range(looks):
        lags(honest)
        await pass_s(run, 10)
        world.block()
    assert "does not know" in (run.context.providers["honest"] or "")
    honest.unfreeze()
    honest.swallows = True
    await pass_s(run, 10)
    assert run.context.providers["honest"] is None


LIES = [
    is_dead,
    stands_still,
    is_old,
    denies_everything,
    denies_transactions,
    answers_no_transaction,
    has_other_parameters,
    runs_ahead,
    runs_ahead_and_stands_by_it,
    is_a_little_ahead_and_stands_by_it,
    is_in_the_future,
    swallows,
    answers_another_id,
]


async def pass_s(run: Run, seconds: int, until: Callable[[], bool] = lambda: False, *, step_s: int = 10) -> int:
    """Make a block every second step and a pass at each; return when `until` held, or more than `seconds`."""
    for passed in range(step_s, seconds + step_s, step_s):
        run.world.clock.ahead_ms += step_s * 1000
        if passed % (2 * step_s) == 0:
            run.world.block()
        await run.run_pass()
        if until():
            return passed
    return seconds + step_s


EACH_ONCE = list(zip(LIES, cycle([True, False])))
"""Each lie once, by the first provider or the second: the sample."""


@pytest.mark.parametrize(("lie", "liar_is_first"), pick(EACH_ONCE, list(product(LIES, [True, False]))))
async def test_a_payment_is_confirmed_in_time_although_one_of_two_providers_lies(
    world: World, liar: Relay, honest: Relay, lie: Callable[[Relay], None], liar_is_first: bool
) -> None:
    world.fund(50 * ADA)
    async with world.run(
        providers=providers(liar, honest, liar_is_first), terms=with_terms(confirm_depth=3)
    ) as run:
        await run.run_pass()
        lie(liar)
        await run.run_pass()
        row = await run.pay()
        took_s = await pass_s(run, IN_TIME_S, lambda: run.state(row.id) is State.CONFIRMED)
        assert took_s <= IN_TIME_S
        assert world.transactions() == [row.attempt.tx_id]
        liar.unfreeze()
        await pass_s(run, 60)
        assert run.owned() == world.on_chain()
        assert {entry.kind for entry in run.entries()} == {"deposit", "reserve", "post"}
        assert run.selectable() == world.unspent()


@pytest.mark.parametrize("depth", [1, 3])
async def test_a_payment_is_reopened_when_its_provider_takes_back_a_false_confirmation(
    world: World, liar: Relay, depth: int
) -> None:
    """A single provider is believed until it denies the transaction several times."""
    world.fund(50 * ADA)
    async with world.run(providers={"liar": liar.url}, terms=with_terms(confirm_depth=depth)) as run:
        await run.run_pass()
        liar.swallows = True
        row = await run.pay()
        world.block()
        invent_tx(liar, row.attempt.tx_id or "", tip_of(liar))
        await run.run_pass()
        assert run.state(row.id) is (State.CONFIRMED if depth == 1 else State.IN_BLOCK)
        liar.unfreeze()
        open_again = (State.IN_FLIGHT, State.IN_BLOCK)
        assert 120 <= await pass_s(run, 900, lambda: "block_lost" in run.events(row.id)) <= 520
        assert run.state(row.id) in open_again
        (told_of,) = alerts.after(run.context.conn, 0)
        assert (told_of.kind, told_of.subject) == ("payment_reopened", f"reopened:{row.id}")
        assert await pass_s(run, 300, lambda: run.state(row.id) is State.CONFIRMED) <= 120
        assert world.transactions() == [row.attempt.tx_id]
        assert run.owned() == world.on_chain()


async def test_a_payment_that_spends_change_does_not_wait_for_a_slow_provider(
    world: World, liar: Relay, honest: Relay
) -> None:
    """Not even while the transaction before it is still being submitted to the slow provider."""
    world.fund(300 * ADA)
    over = threading.Event()
    liar.heard = lambda path, _: over.wait() if path == "/tx/submit" else None  # type: ignore[method-assign]
    async with world.run(
        providers=providers(liar, honest, True), terms=with_terms(unconfirmed_ancestors_max=8), timeouts=Timeouts()
    ) as run:
        try:
            await run.run_pass()
            rows = [(await run.agent.pay(world.ask(f"call {number}")))[0] for number in range(4)]
            async with asyncio.timeout(60):
                while len(world.waiting()) < len(rows):
                    await asyncio.sleep(0.05)
        finally:
            over.set()
        assert world.waiting() == [row.attempt.tx_id for row in rows]
        assert liar.submissions() == 1


async def test_after_a_429_the_provider_is_not_sent_transactions_that_depend_on_the_first_one(
    world: World, honest: Relay
) -> None:
    """Blockfrost bans clients that continue after 402 or 429."""
    world.fund(300 * ADA)
    over = threading.Event()
    honest.tell("/tx/submit", 429, {"status_code": 429, "error": "Too Many Requests", "message": "later"})
    honest.heard = lambda path, _: over.wait() if path == "/tx/submit" else None  # type: ignore[method-assign]
    async with world.run(
        providers={"one": honest.url}, terms=with_terms(unconfirmed_ancestors_max=8), timeouts=Timeouts()
    ) as run:
        try:
            await run.run_pass()
            for number in range(3):
                await run.agent.pay(world.ask(f"call {number}"))
            async with asyncio.timeout(60):
                while not (honest.submissions() and run.agent.submitter.count == 3):
                    await asyncio.sleep(0.05)
        finally:
            over.set()
        await run.agent.submitter.drain(60)
        assert honest.submissions() == 1


async def test_an_attempt_that_one_provider_calls_invalid_is_still_resubmitted_and_replaced(
    world: World, liar: Relay, honest: Relay
) -> None:
    """A node loses its mempool when it restarts, and a fork may lose a block."""
    world.settings(timeout=3000)
    world.fund(50 * ADA)
    liar.tell("/tx/submit", 400, {"status_code": 400, "error": "Bad Request", "message": "FeeTooSmallUTxO"})
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        honest.swallows = True
        row = await run.pay()
        world.clock.ahead_ms += 6_000
        await run.run_pass()
        assert honest.submissions() == 2
        await pass_s(run, TTL_CAP_S, step_s=60)
        honest.unfreeze()
        assert await pass_s(run, 600, lambda: run.state(row.id) is State.CONFIRMED) < 600
        assert world.transactions() == [run.context.payment(row.id).attempt.tx_id] != [row.attempt.tx_id]


@pytest.mark.parametrize("lie", [is_dead, is_old, has_other_parameters])
async def test_a_provider_that_is_faulty_from_the_start_blocks_no_payment(
    world: World, liar: Relay, honest: Relay, lie: Callable[[Relay], None]
) -> None:
    world.fund(50 * ADA)
    lie(liar)
    async with world.run(providers=providers(liar, honest, True)) as run:
        assert await pass_s(run, 300, lambda: bool(run.selectable())) <= 260
        row = await run.pay()
        assert await pass_s(run, 60, lambda: run.state(row.id) is State.CONFIRMED) <= 20
        assert run.owned() == world.on_chain()
        assert raised(run) == {"provider:liar"}
        assert run.context.providers["honest"] is None
        assert run.context.providers["liar"]
        liar.unfreeze()
        await pass_s(run, 60)
        assert raised(run) == set()
        assert run.context.providers["liar"] is None


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        (is_dead, "could not be read"),
        (runs_ahead, "another height"),
        (goes_back, "went back"),
        (is_in_the_future, "in the future"),
        (answers_another_id, "another transaction's id"),
    ],
)
async def test_an_excluded_provider_is_reported_with_its_reason_until_it_returns(
    world: World, liar: Relay, honest: Relay, lie: Callable[[Relay], None], why: str
) -> None:
    world.fund(50 * ADA, 60 * ADA)
    world.block(2)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        lie(liar)
        await run.run_pass()
        await run.pay()
        await pass_s(run, 160)
        assert raised(run) == {"provider:liar"}
        assert why in (run.context.providers["liar"] or "")
        assert run.context.providers["honest"] is None
        liar.unfreeze()
        await pass_s(run, 640, lambda: not raised(run))
        assert raised(run) == set()
        assert run.context.providers["liar"] is None


async def test_a_provider_that_cannot_list_utxos_blocks_no_deposit(
    world: World, liar: Relay, honest: Relay
) -> None:
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        liar.tell("/addresses/", 500, DOWN)
        world.fund(50 * ADA)
        assert await pass_s(run, 1000, lambda: bool(run.selectable())) <= 900
        row = await run.pay()
        assert await pass_s(run, 60, lambda: run.state(row.id) is State.CONFIRMED) <= 20


@pytest.mark.parametrize("is_kept", pick([True], [True, False]))
async def test_the_alert_of_a_provider_that_returned_or_was_removed_clears_after_a_restart(
    world: World, liar: Relay, honest: Relay, is_kept: bool
) -> None:
    """Otherwise it would stay reported as excluded, and a later exclusion would raise no alert."""
    world.fund(50 * ADA)
    is_dead(liar)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await pass_s(run, 200)
        assert raised(run) == {"provider:liar"}
    liar.unfreeze()
    left = providers(liar, honest, True) if is_kept else {"honest": honest.url}
    async with world.run(providers=left) as run:
        await pass_s(run, 640)
        assert raised(run) == set()


@long_only
async def test_a_flapping_provider_does_not_fill_the_ledger_with_alerts(
    world: World, liar: Relay, honest: Relay
) -> None:
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        for _ in range(20):
            is_in_the_future(liar)
            await pass_s(run, 20)
            liar.unfreeze()
            await pass_s(run, 20)
        kinds = [alert.kind for alert in alerts.after(run.context.conn, 0)]
        assert kinds == ["provider_excluded", "cleared", "provider_excluded"]
        await pass_s(run, 620)
        assert raised(run) == set()


async def test_a_provider_caught_lying_is_sent_no_transactions(world: World, liar: Relay, honest: Relay) -> None:
    world.fund(50 * ADA, 60 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        answers_another_id(liar)
        await run.pay("first")
        await pass_s(run, 20)
        sent = liar.submissions()
        await run.pay("second")
        await pass_s(run, 20)
        assert liar.submissions() == sent
        assert len(world.transactions()) == 2


async def test_setting_the_clock_back_does_not_prolong_an_exclusion(
    world: World, liar: Relay, honest: Relay
) -> None:
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        answers_another_id(liar)
        await run.pay("first")
        await run.run_pass()
        assert run.context.providers["liar"]
        liar.unfreeze()
        await pass_s(run, 20)
        world.clock.ahead_ms -= 100_000
        await run.run_pass()
        assert run.context.providers["liar"] is None


async def test_known_utxos_are_spendable_right_after_a_restart_with_a_dead_provider(
    world: World, liar: Relay, honest: Relay
) -> None:
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
    is_dead(liar)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        row = await run.pay()
        assert world.waiting() == [row.attempt.tx_id]
        assert await pass_s(run, 200, lambda: run.state(row.id) is State.CONFIRMED) <= 130
        assert run.owned() == world.on_chain()


class TestInventedFacts:
    """What is not on the chain is not booked, however long a provider claims it."""

    async def test_an_invented_block_that_the_liar_itself_does_not_know_is_not_believed(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            liar.swallows = honest.swallows = True
            row = await run.pay()
            invent_tx(liar, row.attempt.tx_id or "", tip_of(liar) | {"hash": FAKE})
            await pass_s(run, 260, lambda: run.state(row.id) is not State.IN_FLIGHT)
            assert run.state(row.id) is State.IN_FLIGHT
            honest.swallows = False
            assert raised(run) == {"provider:liar"}
            assert "does not know" in (run.context.providers["liar"] or "")
            assert await pass_s(run, 240, lambda: run.state(row.id) is State.CONFIRMED) <= 240
            assert run.owned() == world.on_chain()

    async def test_an_invented_block_that_the_liar_stands_by_only_delays_the_payment(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """Nothing shows which provider lies, so the payment is resubmitted and its confirmation waits."""
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            row = await run.pay()
            invent_block(liar, row.attempt.tx_id or "")
            sent = honest.submissions()
            await pass_s(run, 240)
            assert run.state(row.id) is State.IN_FLIGHT
            assert honest.submissions() > sent
            assert world.transactions() == [row.attempt.tx_id]
            assert raised(run) == {"providers"}
            liar.unfreeze()
            await pass_s(run, 20)
            assert run.state(row.id) is State.CONFIRMED
            assert raised(run) == set()
            assert run.owned() == world.on_chain()

    async def test_an_invented_block_is_not_believed_while_the_honest_provider_is_briefly_away(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            liar.swallows = honest.swallows = True
            row = await run.pay()
            invent_block(liar, row.attempt.tx_id or "")
            is_dead(honest)
            await pass_s(run, 100, lambda: run.state(row.id) is not State.IN_FLIGHT)
            assert run.state(row.id) is State.IN_FLIGHT

    async def test_no_invented_block_settles_a_payment_while_the_honest_providers_replicas_lag(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """The replicas lag for minutes. What only the liar shows meanwhile never settles."""
        world.fund(50 * ADA)
        terms = with_terms(confirm_depth=1, settle_depth=3)
        async with world.run(providers=providers(liar, honest, True), terms=terms) as run:
            await run.run_pass()
            liar.swallows = honest.swallows = True
            row = await run.pay()
            invent_block(liar, row.attempt.tx_id or "")
            for _ in range(3):
                await be_missed(world, run, honest, looks=24)
            assert "settle" not in run.events(row.id)
            liar.unfreeze()
            honest.unfreeze()
            await settles(world, run, row)

    @long_only
    async def test_no_invented_block_settles_a_payment_while_the_honest_provider_shows_no_transactions(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """The honest provider shows its tip, but its answers about transactions fail."""
        world.fund(50 * ADA)
        terms = with_terms(confirm_depth=1, settle_depth=3)
        async with world.run(providers=providers(liar, honest, True), terms=terms) as run:
            await run.run_pass()
            liar.swallows = honest.swallows = True
            row = await run.pay()
            invent_block(liar, row.attempt.tx_id or "")
            honest.tell("/txs/", 500, DOWN)
            await pass_s(run, 400)
            assert "settle" not in run.events(row.id)
            liar.unfreeze()
            honest.unfreeze()
            await settles(world, run, row)

    @long_only
    async def test_an_invented_cancel_is_not_believed_while_the_honest_provider_comes_and_goes(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """Each time the liar is alone it is read once. These are not three reads in a row."""
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True), terms=with_terms(void_depth=2)) as run:
            await run.run_pass()
            liar.swallows = honest.swallows = True
            row = await run.pay()
            cancel = await run.agent.lifecycle.resolve(row.id, APP)
            invent_block(liar, cancel.attempt.tx_id or "")
            for _ in range(4):
                await be_missed(world, run, honest, looks=14)
                assert run.state(row.id) is State.CANCELLING

    @pytest.mark.parametrize("honest_is_away", pick([True], [False, True]))
    async def test_an_invented_utxo_is_not_booked_or_spent(
        self, world: World, liar: Relay, honest: Relay, honest_is_away: bool
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            invent_utxo(liar, world, 900 * ADA)
            if honest_is_away:
                honest.tell("/addresses/", 500, DOWN)
            await pass_s(run, 60)
            assert run.owned() == world.on_chain()
            assert run.selectable() == world.unspent()
            honest.unfreeze()
            row = await run.pay()
            await pass_s(run, 40)
            assert run.state(row.id) is State.CONFIRMED
            liar.unfreeze()
            await pass_s(run, 40)
            assert run.owned() == world.on_chain()

    @long_only
    async def test_an_invented_utxo_is_not_booked_while_the_honest_providers_replicas_lag(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """No later pass would undo it while the liar stands by it, so it waits for the other provider."""
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            invent_utxo(liar, world, 900 * ADA)
            for _ in range(3):
                await be_missed(world, run, honest, looks=40)
                assert run.owned() == world.on_chain()
            assert run.selectable() == world.unspent()

    async def test_an_invented_utxo_is_not_booked_while_the_honest_provider_cannot_list_utxos(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            invent_utxo(liar, world, 900 * ADA)
            honest.tell("/addresses/", 500, DOWN)
            await pass_s(run, 400)
            assert run.owned() == world.on_chain()
            assert run.selectable() == world.unspent()

    @long_only
    async def test_an_invented_utxo_is_not_booked_after_a_restart_without_the_honest_utxo_list(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
        invent_utxo(liar, world, 900 * ADA)
        honest.tell("/addresses/", 500, DOWN)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await pass_s(run, 400)
            assert run.owned() == world.on_chain()
            assert run.selectable() == world.unspent()

    async def test_known_utxos_stay_spendable_when_the_liar_denies_them(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        """The liar lists nothing. Known UTxOs stay selectable, and no deposit is rolled back."""
        world.fund(50 * ADA, 60 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            await run.run_pass()
            liar.tell("/addresses/", 404, NO_SUCH)
            liar.tell("/txs/", 404, NO_SUCH)
            await pass_s(run, 240)
            assert not queries.missing_utxos(run.context.conn)
            assert run.selectable() == world.unspent()
            assert run.owned() == world.on_chain()

    async def test_a_payment_stays_confirmed_when_the_liar_denies_its_block(
        self, world: World, liar: Relay, honest: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=providers(liar, honest, True)) as run:
            row = await run.pay_in_block()
            block_hash = run.context.payment(row.id).block.hash
            world.block(3)
            liar.tell("/txs/", 404, NO_SUCH)
            liar.tell(f"/blocks/{block_hash}", 404, NO_SUCH)
            for _ in range(12):
                world.clock.ahead_ms += 10_000
                world.control("rollback", depth=1)
                world.block(2)
                await run.run_pass()
                assert run.state(row.id) is State.CONFIRMED
            assert "block_lost" not in run.events(row.id)


async def test_a_payment_booked_in_an_invented_block_far_above_the_tip_is_reopened_and_lands(
    world: World, liar: Relay
) -> None:
    """No tip ever gets so high. The payment once stayed in that block for ever and was not resubmitted."""
    world.fund(50 * ADA)
    async with world.run(providers={"liar": liar.url}) as run:
        await run.run_pass()
        liar.swallows = True
        row = await run.pay()
        invent_tx(liar, row.attempt.tx_id or "", tip_of(liar) | {"hash": FAKE, "height": 2**62})
        await pass_s(run, 20)
        assert run.state(row.id) is State.IN_BLOCK
    liar.unfreeze()
    async with world.run(providers={"liar": liar.url}) as run:
        assert await pass_s(run, 300, lambda: run.state(row.id) is State.CONFIRMED) <= 200
        assert world.transactions() == [row.attempt.tx_id]
        assert run.owned() == world.on_chain()


async def test_confirmation_depth_is_counted_from_the_lower_of_two_tips(
    world: World, liar: Relay, honest: Relay
) -> None:
    """A tip far ahead does not make a block deeper than the honest tip shows."""
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True), terms=with_terms(confirm_depth=5)) as run:
        await run.run_pass()
        row = await run.pay()
        is_a_little_ahead_and_stands_by_it(liar)
        for _ in range(4):
            world.block()
            world.clock.ahead_ms += 10_000
            await run.run_pass()
            assert run.state(row.id) in (State.IN_FLIGHT, State.IN_BLOCK)
        world.block()
        await run.run_pass()
        assert run.state(row.id) is State.CONFIRMED


@pytest.mark.parametrize("is_alone", pick([False], [False, True]))
@pytest.mark.parametrize(
    "lie", pick([runs_ahead_and_stands_by_it], [runs_ahead_and_stands_by_it, is_a_little_ahead_and_stands_by_it])
)
async def test_a_lost_block_is_found_although_a_tip_was_once_too_high(
    world: World, liar: Relay, honest: Relay, lie: Callable[[Relay], None], is_alone: bool
) -> None:
    world.fund(50 * ADA)
    pair = {"liar": liar.url} if is_alone else providers(liar, honest, True)
    async with world.run(providers=pair) as run:
        await run.run_pass()
        lie(liar)
        await run.run_pass()
        liar.unfreeze()
        await pass_s(run, 20)
        row = await run.pay()
        await pass_s(run, 20)
        assert run.state(row.id) is State.CONFIRMED
        world.control("rollback", depth=1)
        world.devnet.run(lambda devnet: devnet.chain.mempool.clear())
        assert await pass_s(run, 900, lambda: "block_lost" in run.events(row.id)) <= 900
        await pass_s(run, 60)
        assert run.state(row.id) is State.CONFIRMED
        assert world.transactions() == [row.attempt.tx_id]


def is_low_and_denies(relay: Relay) -> None:
    """Show an invented recent block far below the tip, and no transactions."""
    tip = tip_of(relay)
    low = tip | {"height": 5, "hash": f"{0xFA00000000 + int(str(tip['height'])):064x}"}
    relay.tell("/blocks/latest", 200, low)
    relay.tell(f"/blocks/{low['hash']}", 200, low)
    relay.tell("/txs/", 404, NO_SUCH)


def is_low(relay: Relay) -> None:
    is_low_and_denies(relay)
    relay.untell("/txs/")


@pytest.mark.parametrize("lie", pick([is_low], [is_low_and_denies, is_low]))
async def test_a_provider_whose_tip_is_too_low_raises_an_alert_and_payments_still_land(
    world: World, liar: Relay, honest: Relay, lie: Callable[[Relay], None]
) -> None:
    world.fund(50 * ADA)
    world.block(30)
    lie(liar)
    async with world.run(providers=providers(liar, honest, True), terms=with_terms(confirm_depth=3)) as run:
        await run.run_pass()
        row = await run.pay()
        for _ in range(30):
            lie(liar)
            await pass_s(run, 10)
            world.block()
        assert world.transactions() == [row.attempt.tx_id]
        assert raised(run) & {"providers", "provider:liar"}
        liar.unfreeze()
        await pass_s(run, 800, lambda: run.state(row.id) is State.CONFIRMED and not raised(run))
        assert run.state(row.id) is State.CONFIRMED
        assert raised(run) == set()


async def test_a_lagging_transaction_index_does_not_exclude_a_provider_or_end_a_payment(
    world: World, liar: Relay, honest: Relay
) -> None:
    """The honest provider lists our change while its transaction index lags behind. That alone is no lie."""
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
        row = await run.pay()
        honest.tell(f"/txs/{row.attempt.tx_id}", 404, NO_SUCH)
        await pass_s(run, 170)
        assert run.context.providers["honest"] is None
        honest.unfreeze()
        await pass_s(run, 20)
        assert run.state(row.id) is State.CONFIRMED


@long_only
async def test_a_payment_settles_although_a_provider_never_stops_lying(
    world: World, liar: Relay, honest: Relay
) -> None:
    """It stands by an invented block, each time at another height. After repeated exclusions it is ignored."""
    world.fund(50 * ADA)
    async with world.run(
        providers=providers(liar, honest, True), terms=with_terms(confirm_depth=1, settle_depth=3)
    ) as run:
        await run.run_pass()
        row = await run.pay()
        for _ in range(250):
            invent_block(liar, row.attempt.tx_id or "")
            await pass_s(run, 10)
            world.block()
            if run.state(row.id) is State.SETTLED:
                break
        assert run.state(row.id) is State.SETTLED


async def test_no_payment_settles_while_a_provider_is_excluded(world: World, liar: Relay, honest: Relay) -> None:
    """The wrong provider may have been excluded."""
    world.fund(50 * ADA)
    async with world.run(
        providers=providers(liar, honest, True), terms=with_terms(confirm_depth=1, settle_depth=3)
    ) as run:
        await run.run_pass()
        answers_another_id(liar)
        row = await run.pay()
        await pass_s(run, 200)
        assert run.context.providers["liar"]
        assert run.state(row.id) is State.CONFIRMED
        liar.unfreeze()
        await pass_s(run, 600, lambda: run.state(row.id) is State.SETTLED)
        assert run.state(row.id) is State.SETTLED


async def test_a_payment_settles_once_a_dead_provider_has_been_missing_for_ten_minutes(
    world: World, liar: Relay, honest: Relay
) -> None:
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        await run.run_pass()
    is_dead(liar)
    terms = with_terms(confirm_depth=1, settle_depth=3)
    async with world.run(providers=providers(liar, honest, True), terms=terms) as run:
        await run.run_pass()
        row = await run.pay()
        took_s = await pass_s(run, 660, lambda: run.state(row.id) is State.SETTLED)
        assert 590 <= took_s <= 660


async def test_a_rollback_that_both_providers_show_is_noticed_and_the_payment_lands_again(
    world: World, liar: Relay, honest: Relay
) -> None:
    """The rules against lies do not delay what both providers show."""
    world.fund(50 * ADA)
    async with world.run(providers=providers(liar, honest, True)) as run:
        row = await run.pay_in_block()
        world.control("rollback", depth=1)
        world.block(2)
        await run.run_pass()
        assert run.state(row.id) is State.IN_FLIGHT
        await pass_s(run, 60)
        assert run.state(row.id) is State.CONFIRMED
        assert run.owned() == world.on_chain()
