"""Several providers, or a bad one: which are believed, which get transactions, and what counts as evidence."""

from collections.abc import Iterator

import httpx
import pytest
from kit.agent import ADA, Relay, World, with_terms
from kit.http import NO_TLS

from payagent.core.payment.machine import State
from payagent.core.problems import Refused
from payagent.store.rows import alerts, payments
from payagent.store.rows import attempts_and_utxos as queries

NOBODY = "http://127.0.0.1:9/api/v0"
"""The discard port: nothing listens there."""

OVER_LIMIT = {"status_code": 429, "error": "Project Over Limit", "message": "Usage is over limit."}
TOO_LITTLE = {"status_code": 400, "error": "Bad Request", "message": "(UtxoFailure (FeeTooSmallUTxO"}
NO_SUCH = {"status_code": 404, "error": "Not Found", "message": "The requested component has not been found."}


@pytest.fixture
def first(world: World) -> Iterator[Relay]:
    """The provider that is configured first."""
    with Relay(world.devnet).serving() as relay:
        yield relay


@pytest.fixture
def second(world: World) -> Iterator[Relay]:
    with Relay(world.devnet).serving() as relay:
        yield relay


def both(first: Relay, second: Relay) -> dict[str, str]:
    return {"first": first.url, "second": second.url}


def told(relay: Relay, path: str) -> dict[str, object]:
    """The true answer, for a test to alter."""
    return dict(httpx.get(f"{relay.upstream}{path}", verify=NO_TLS, trust_env=False).json())


def denies_all(relay: Relay, height: int, slot: int) -> None:
    """Make a provider sync from scratch: it has its own tip and knows nothing else."""
    for prefix in ("/txs/", "/blocks/", "/addresses/"):
        relay.tell(prefix, 404, NO_SUCH)
    tip = told(relay, "/blocks/latest")
    relay.tell("/blocks/latest", 200, tip | {"height": height, "slot": slot, "hash": f"{height:02x}" * 32})


OUT_OF_ORDER = {"status_code": 500, "error": "Internal Server Error", "message": "down"}


class TestReportedReasons:
    """The reason why a pass could not be completed is shown where an operator looks."""

    async def test_an_unreadable_utxo_list_is_reported_with_its_reason(self, world: World, first: Relay) -> None:
        first.tell("/addresses/", 500, OUT_OF_ORDER)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            with pytest.raises(Refused, match="utxos: http 500"):
                run.context.chain.require_ready(world.clock.now_ms())
            assert run.chain_sync.trouble == "first: utxos: http 500"

    async def test_a_payment_that_cannot_be_looked_up_is_reported_with_its_reason(
        self, world: World, first: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            await run.pay()
            first.tell("/txs/", 500, OUT_OF_ORDER)
            await run.settle_down()
            assert run.chain_sync.trouble == "first: tx: http 500"
            first.untell("/txs/")
            await run.settle_down()
            assert run.chain_sync.trouble is None

    async def test_an_old_tip_is_reported_with_its_reason(self, world: World, first: Relay) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell("/blocks/latest", 500, OUT_OF_ORDER)
            world.clock.ahead_ms += 301_000
            await run.run_pass()
            with pytest.raises(Refused, match=r"30\d s old; .*first: could not be read .tip: http 500"):
                run.context.chain.require_ready(world.clock.now_ms())

    async def test_a_lasting_read_failure_raises_an_alert_that_clears_when_it_is_over(
        self, world: World, first: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell("/addresses/", 500, OUT_OF_ORDER)
            await run.pass_time(9)
            assert alerts.after(run.context.conn, 0) == []
            await run.pass_time(4)
            (told_of,) = alerts.after(run.context.conn, 0)
            assert (told_of.kind, told_of.subject) == ("provider_excluded", "chain")
            assert "first: utxos: http 500" in told_of.facts["detail"]
            first.untell("/addresses/")
            await run.pass_time(2)
            assert not alerts.raised(run.context.conn, "provider_excluded")


async def test_an_unclassified_submit_refusal_raises_one_alert_until_that_provider_accepts_it(
    world: World, first: Relay
) -> None:
    world.fund(50 * ADA, 50 * ADA)
    async with world.run(providers={"first": first.url}) as run:
        await run.run_pass()
        first.tell("/tx/submit", 400, {"status_code": 400, "message": "Invalid transaction CBOR."})
        row = await run.pay("one")
        await run.pay("two")
        (told_of,) = alerts.after(run.context.conn, 0)
        assert (told_of.kind, told_of.subject) == ("submission_refused", "refused:first")
        assert told_of.facts["tx_hash"] == row.attempt.tx_id
        assert "Invalid transaction CBOR." in told_of.facts["detail"]
        first.untell("/tx/submit")
        world.clock.ahead_ms += 6_000
        await run.run_pass()
        assert not alerts.raised(run.context.conn, "submission_refused")
        first.tell("/tx/submit", 400, {"status_code": 400, "message": "Invalid transaction CBOR."})
        world.clock.ahead_ms += 12_000
        await run.run_pass()
        assert not alerts.raised(run.context.conn, "submission_refused"), "it already has these transactions"


class TestTwoProviders:
    async def test_a_payment_is_confirmed_although_the_first_provider_is_dead(
        self, world: World, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"first": NOBODY, "second": second.url}) as run:
            await run.pass_time(15)  # a single provider's news is read three times, a minute apart
            row = await run.pay()
            assert second.submissions() == 1
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == world.on_chain()

    async def test_a_transaction_is_submitted_to_every_provider(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            await run.pay()
            assert (first.submissions(), second.submissions()) == (1, 1)

    @pytest.mark.parametrize(
        ("path", "change"),
        [("/genesis", {"slot_length": 2}), ("/epochs/latest/parameters", {"min_fee_a": 45})],
    )
    async def test_a_provider_with_another_genesis_or_parameters_is_sent_no_transactions(
        self, world: World, first: Relay, second: Relay, path: str, change: dict[str, object]
    ) -> None:
        world.fund(50 * ADA)
        first.tell(path, 200, told(first, path) | change)
        async with world.run(providers=both(first, second)) as run:
            await run.pass_time(15)
            second.tell("/tx/submit", 429, OVER_LIMIT)
            row = await run.pay()
            second.unfreeze()
            await run.pass_time(4)
            assert run.state(row.id) is State.CONFIRMED
            assert first.submissions() == 0
            assert second.submissions() >= 2

    @pytest.mark.parametrize("is_other_chain", [True, False])
    async def test_nothing_is_signed_while_no_provider_is_believed(
        self, world: World, first: Relay, is_other_chain: bool
    ) -> None:
        """One tells a genesis of another chain, one tells none (Yaci Store has no /genesis)."""
        world.fund(50 * ADA)
        if is_other_chain:
            first.tell("/genesis", 200, told(first, "/genesis") | {"slot_length": 2})
        else:
            first.tell("/genesis", 404, NO_SUCH)
        async with world.run(providers={"first": first.url}) as run:
            assert not await run.chain_sync.run_once()
            with pytest.raises(Refused, match="chain_not_ready"):
                await run.agent.pay(world.ask())
            assert not payments.payments_in(run.context.conn, list(State))


PARAMETERS = "/epochs/latest/parameters"


class TestProtocolParameters:
    """Governance may change protocol parameters at any epoch."""

    async def test_when_the_chain_raises_its_fees_open_payments_are_followed_and_none_is_signed(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        """Both providers report it, so it is not the lie of one."""
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            row = await run.pay()
        for relay in (first, second):
            relay.tell(PARAMETERS, 200, told(relay, PARAMETERS) | {"min_fee_a": 45})
        async with world.run(providers=both(first, second)) as run:
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            with pytest.raises(Refused, match="min_fee_a = 45"):
                await run.agent.pay(world.ask("again"))
            assert run.owned() == world.on_chain()

    async def test_parameters_are_read_again_when_a_provider_calls_a_transaction_invalid(
        self, world: World, first: Relay
    ) -> None:
        """Otherwise every transaction would be refused for most of an hour after an epoch change."""
        world.fund(50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell(PARAMETERS, 200, told(first, PARAMETERS) | {"min_fee_a": 45})
            first.tell("/tx/submit", 400, TOO_LITTLE)
            await run.pay()
            await run.run_pass()
            with pytest.raises(Refused, match="min_fee_a = 45"):
                await run.agent.pay(world.ask("again"))

    @pytest.mark.parametrize("fee", [43, 45])
    async def test_one_provider_of_two_cannot_change_the_parameters(
        self, world: World, first: Relay, second: Relay, fee: int
    ) -> None:
        world.fund(50 * ADA)
        first.tell(PARAMETERS, 200, told(first, PARAMETERS) | {"min_fee_a": fee})
        async with world.run(providers=both(first, second)) as run:
            await run.pass_time(15)
            row = await run.pay()
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert run.context.providers["first"] is not None

    @pytest.mark.parametrize("fee", [43, 45])
    async def test_parameters_of_a_long_absent_provider_exclude_no_other_provider(
        self, world: World, first: Relay, second: Relay, fee: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Otherwise a change that the absent provider never reports would stop all open payments."""
        monkeypatch.setattr("payagent.chain.provider_state.ABSENT_MS", 150_000)
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            second.tell("/", 500, OVER_LIMIT)
            first.tell("/tx/submit", 400, TOO_LITTLE)
            row = await run.pay()
            first.untell("/tx/submit")
            first.tell(PARAMETERS, 200, told(first, PARAMETERS) | {"min_fee_a": fee})
            await run.run_pass()
            await run.pass_time(11)
            assert run.context.providers["first"] is not None
            await run.pass_time(9)
            assert run.context.providers["first"] is None
            assert run.state(row.id) is State.CONFIRMED

    async def test_when_all_providers_report_higher_fees_an_alert_is_raised_until_it_is_over(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        for relay in (first, second):
            relay.tell(PARAMETERS, 200, told(relay, PARAMETERS) | {"min_fee_a": 45})
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            told_of = alerts.after(run.context.conn, 0)
            assert {row.subject for row in told_of if row.kind == "provider_excluded"} == {
                "provider:first",
                "provider:second",
            }
            assert all("min_fee_a = 45" in row.facts["detail"] for row in told_of)
            for relay in (first, second):
                relay.untell(PARAMETERS)
            await run.pass_time(7)
            assert not alerts.raised(run.context.conn, "provider_excluded")

    @pytest.mark.parametrize("fee", [43, 45])
    async def test_a_provider_with_other_parameters_still_has_its_network_checked(
        self, world: World, first: Relay, fee: int
    ) -> None:
        world.fund(50 * ADA, 50 * ADA)
        first.tell(PARAMETERS, 200, told(first, PARAMETERS) | {"min_fee_a": fee})
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell("/genesis", 200, told(first, "/genesis") | {"slot_length": 2})
            world.clock.ahead_ms += 61_000
            await run.run_pass()
            assert run.context.submit_providers == []
            with pytest.raises(Refused, match="slots last 2 s"):
                await run.agent.pay(world.ask())

    async def test_the_network_is_checked_even_if_the_provider_has_no_parameters(
        self, world: World, first: Relay
    ) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell(PARAMETERS, 404, NO_SUCH)
            first.tell("/genesis", 200, told(first, "/genesis") | {"slot_length": 2})
            world.clock.ahead_ms += 3_601_000
            await run.run_pass()
            with pytest.raises(Refused, match="slots last 2 s"):
                await run.agent.pay(world.ask())

    async def test_when_one_provider_reports_other_parameters_the_rest_are_asked_too(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        """At an epoch change; otherwise the provider asked first would be excluded for most of an hour."""
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            for relay in (first, second):
                relay.tell(PARAMETERS, 200, told(relay, PARAMETERS) | {"min_fee_a": 43})
            first.tell("/tx/submit", 400, TOO_LITTLE)
            await run.pay()
            first.untell("/tx/submit")
            await run.settle_down(2)
            assert dict(run.context.providers) == {"first": None, "second": None}

    async def test_a_provider_that_has_no_parameters_for_a_while_is_still_believed(
        self, world: World, first: Relay
    ) -> None:
        """Blockfrost's backend does this at the start of an epoch, until it has read the new ones."""
        world.fund(50 * ADA, 50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell("/tx/submit", 400, TOO_LITTLE)
            await run.pay()
            first.untell("/tx/submit")
            first.tell(PARAMETERS, 404, NO_SUCH)
            asked = first.calls.count(("GET", PARAMETERS))
            await run.run_pass()
            assert first.calls.count(("GET", PARAMETERS)) > asked
            row = await run.pay("again")
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
        async with world.run(providers={"first": first.url}) as run:  # after a start the provider must report them
            assert not await run.chain_sync.run_once()

    @pytest.mark.parametrize(
        "change", [{"min_fee_a": 43}, {"max_tx_size": 32_768}, {"coins_per_utxo_size": "4000"}]
    )
    async def test_payments_go_on_when_the_chain_lowers_its_requirements(
        self, world: World, first: Relay, change: dict[str, object]
    ) -> None:
        world.fund(50 * ADA)
        first.tell(PARAMETERS, 200, told(first, PARAMETERS) | change)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            row = await run.pay()
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED


class TestRateLimited:
    """429: the provider is not called until its Retry-After has passed."""

    async def test_the_only_provider_is_sent_nothing_until_its_retry_after_has_passed(
        self, world: World, first: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"first": first.url}) as run:
            await run.run_pass()
            first.tell("/tx/submit", 429, OVER_LIMIT, Retry_After="60")
            row = await run.pay()
            for ahead_ms, sent in ((30_000, 1), (29_000, 1), (2_000, 2)):
                world.clock.ahead_ms += ahead_ms
                await run.run_pass()
                assert first.submissions() == sent
            first.unfreeze()
            world.clock.ahead_ms += 61_000
            await run.run_pass()
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED

    async def test_while_one_provider_is_rate_limited_the_other_gets_the_resubmissions(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            first.tell("/tx/submit", 429, OVER_LIMIT, Retry_After="120")
            second.tell("/tx/submit", 425, OVER_LIMIT)
            await run.pay()
            for _ in range(4):
                world.clock.ahead_ms += 22_000
                await run.run_pass()
            assert first.submissions() == 1
            assert second.submissions() >= 3


class TestEvidence:
    """Rule 4: what a provider does not show is not proven to be gone."""

    @pytest.mark.parametrize("tip_is_fresh", [True, False])
    async def test_a_provider_that_syncs_again_from_scratch_reverses_nothing(
        self, world: World, first: Relay, tip_is_fresh: bool
    ) -> None:
        world.fund(50 * ADA)
        world.fund(60 * ADA)
        world.settings(timeout=3000)
        async with world.run(providers={"first": first.url}) as run:
            row = await run.pay_in_block()
            owned = run.owned()
            slot = int(str(told(first, "/blocks/latest")["slot"]))
            for height in (1, 2, 1, 2):
                denies_all(first, height, slot if tip_is_fresh else 0)
                world.clock.ahead_ms += 61_000
                await run.run_pass()
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == owned
            kinds = {entry.kind for entry in run.entries()}
            assert kinds == {"deposit", "reserve", "post"}
            first.unfreeze()
            await run.run_pass()
            await run.settle_down()
            assert run.selectable() == world.unspent()

    async def test_after_one_empty_list_lack_of_funds_is_not_recorded_as_a_refusal(self, world: World) -> None:
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            world.fault("/addresses/", "not_found", count=1)
            await run.settle_down()
            assert not run.selectable()
            with pytest.raises(Refused, match="chain_not_ready"):
                await run.agent.pay(world.ask())
            assert not payments.payments_in(run.context.conn, list(State))
            await run.settle_down()
            assert (await run.pay()).state is State.IN_FLIGHT

    async def test_our_own_spend_is_not_taken_for_an_external_spend(self, world: World) -> None:
        """The UTxO list is ahead of the transaction index, and a deposit makes the agent read the list."""
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            row = await run.pay()
            world.fault("/txs/", "not_found")
            world.fund(20 * ADA)
            await run.run_pass()
            assert run.state(row.id) is State.IN_FLIGHT
            assert not queries.missing_utxos(run.context.conn)
            world.control("faults", clear=True)
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED

    @pytest.mark.parametrize("path", ["reads", "/blocks/latest", "/addresses/", "/txs/"])
    async def test_a_pass_with_an_unanswered_read_does_not_count_as_complete(
        self, world: World, path: str
    ) -> None:
        """The scheduler reports `stale` by the result of a pass."""
        world.fund(50 * ADA, 50 * ADA)
        async with world.run() as run:
            assert await run.chain_sync.run_once()
            await run.pay()
            assert await run.chain_sync.run_once()
            world.fault(path, "server")
            world.block()
            assert not await run.chain_sync.run_once()
            assert not await run.chain_sync.run_once()
            world.control("faults", clear=True)
            assert await run.chain_sync.run_once()

    @pytest.mark.parametrize("lie", [{"block_height": 2**63 - 1}, {"block_height": 2**63 - 1, "block": "fa" * 32}])
    async def test_a_block_above_the_providers_own_tip_is_read_again_until_it_is_plausible(
        self, world: World, second: Relay, lie: dict[str, object]
    ) -> None:
        """A single absurd height once kept a payment unconfirmed until a restart."""
        world.fund(50 * ADA)
        async with world.run(providers={"second": second.url}) as run:
            await run.run_pass()
            row = await run.pay()
            world.block()
            path = f"/txs/{row.attempt.tx_id}"
            second.tell(path, 200, told(second, path) | lie)
            await run.run_pass()
            assert run.state(row.id) is State.IN_BLOCK
            second.unfreeze()
            await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            assert run.owned() == world.on_chain()


class TestProviderDeadAtStart:
    """A provider that has not answered since the start is not waited for as one that just went away."""

    async def test_a_payment_is_soon_confirmed_by_the_other_provider_but_not_settled(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
        terms = with_terms(confirm_depth=1, settle_depth=3)
        async with world.run(providers={"first": NOBODY, "second": second.url}, terms=terms) as run:
            await run.run_pass()
            row = await run.pay()
            for _ in range(4):
                world.clock.ahead_ms += 5_000
                await run.settle_down()
            assert run.state(row.id) is State.CONFIRMED
            await run.pass_time(4)
            assert run.state(row.id) is State.CONFIRMED

    async def test_a_provider_that_fails_after_the_start_delays_confirmation(
        self, world: World, first: Relay, second: Relay
    ) -> None:
        world.fund(50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            row = await run.pay()
            first.tell("/", 500, OVER_LIMIT)
            await run.pass_time(5)
            assert run.state(row.id) is State.IN_FLIGHT
            await run.pass_time(7)
            assert run.state(row.id) is State.CONFIRMED

    @pytest.mark.parametrize(
        ("path", "status", "body"), [("/", 500, OVER_LIMIT), ("/txs/", 404, NO_SUCH)], ids=["silent", "disagrees"]
    )
    async def test_payments_are_taken_while_a_provider_is_silent_or_disagrees(
        self, world: World, first: Relay, second: Relay, path: str, status: int, body: object
    ) -> None:
        """So /readyz is to stay ready: the passes see the chain, though none is complete."""
        world.fund(50 * ADA, 50 * ADA)
        async with world.run(providers=both(first, second)) as run:
            await run.run_pass()
            await run.pay()
            first.tell(path, status, body)
            world.block()
            assert not await run.chain_sync.run_once()
            assert run.chain_sync.provider_selection.view is not None
            assert run.context.chain.is_ready(world.clock.now_ms())
            assert (await run.pay("another")).state is State.IN_FLIGHT

    async def test_a_provider_left_alone_adds_a_new_utxo_only_after_three_reads(
        self, world: World, second: Relay
    ) -> None:
        async with world.run(providers={"first": NOBODY, "second": second.url}) as run:
            for _ in range(4):
                world.clock.ahead_ms += 5_000
                await run.settle_down()
            world.fund(50 * ADA)
            await run.run_pass()
            await run.pass_time(9)
            assert not queries.utxos(run.context.conn)
            await run.pass_time(4)
            assert run.owned() == world.on_chain()

    async def test_a_single_configured_provider_is_believed_at_once(self, world: World, second: Relay) -> None:
        world.fund(50 * ADA)
        async with world.run(providers={"second": second.url}) as run:
            await run.run_pass()
            assert run.owned() == world.on_chain()
