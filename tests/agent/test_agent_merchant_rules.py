"""Merchant rules in the real agent: pinned addresses, price rises, unserved payments and payments in flight.

The rules are checked inside the commit and survive a restart. Threats B4 and B5 (addresses), D6 (paid and not
served), K1 (price rises), K4 (too many payments in flight).
"""

import asyncio
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit.agent import ADA, APP, DEVNET, Run, World, daily, world_apart, world_with_clock
from kit.merchants import SOMEBODY, approve, guarded, leave_unserved, pay_to
from kit.payments import LONG_S, TTL_S, BadSigner, attempts, is_sound, lose, pass_time_of, wait_for_void

from payagent.agent.base.payment_view import retry_headers
from payagent.agent.base.requests import MerchantRequest, PaymentRequest
from payagent.agent.operator.merchants import pin, resume, unpin
from payagent.core.address import encode_address
from payagent.core.merchant_rules import MerchantRules, Pin
from payagent.core.payment.machine import Delivery, State
from payagent.core.problems import Refused
from payagent.daemon.compose import make_config
from payagent.devnet.merchant import role_address
from payagent.dialects import make_response
from payagent.log import Redactor
from payagent.settings.loading import load_settings
from payagent.store.rows import alerts, approvals, events, merchants, payments

PINNED = MerchantRules(first_use=True)
PLATFORM, CREATOR = ({"role": name, "units": "1000000"} for name in ("platform", "creator"))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A devnet whose clock the test moves, and a wallet of ten UTxOs."""
    with world_with_clock(tmp_path) as world:
        world.fund(*[50 * ADA] * 10)
        yield world


async def refusal(run: Run, message: str) -> Refused:
    with pytest.raises(Refused) as refused:
        await run.pay(message)
    return refused.value


async def question(run: Run, message: str) -> list[str]:
    """The reasons of a payment that awaits approval, with nothing signed and no UTxO reserved."""
    free = run.selectable()
    row = await run.pay(message)
    assert (row.state, row.nonce_utxo, row.attempt.tx_id) == (State.AWAITING_APPROVAL, None, None)
    assert run.selectable() == free
    asked = approvals.of_payment(run.context.conn, row.id)
    assert asked is not None
    return [reason.code for reason in asked.reasons]


def events_of(run: Run, *names: str) -> list[tuple[str, dict[str, Any]]]:
    """The wallet's own events of these names, in order."""
    rows = events.event_links(run.context.conn)
    return [(event, json.loads(detail)) for _, payment, event, _, detail, *_ in rows if event in names]


class TestPinnedAddresses:
    async def test_the_first_payment_pins_the_merchants_addresses(self, world: World) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            first = await run.pay("first")
            known = [
                ("pay_to", pay_to("pay_to")),
                ("split", pay_to("creator")),
                ("split", pay_to("platform")),
            ]
            assert sorted(merchants.pins(run.context.conn, world.origin)) == known
            pinned = events_of(run, "address_pinned")
            assert sorted((told["role"], told["address"]) for _, told in pinned) == known
            assert {told["payment"] for _, told in pinned} == {first.id}
            assert (await run.pay("second")).state is State.IN_FLIGHT

    @pytest.mark.parametrize("restarted", [False, True])
    @pytest.mark.parametrize(
        "changed",
        [
            {"pay_to": pay_to("thief")},
            {"splits": [PLATFORM, CREATOR, {"role": "thief", "units": "1000000"}]},
            {"splits": [{"role": "thief", "units": "1000000"}]},
        ],
    )
    async def test_a_payment_to_an_unpinned_address_needs_an_approval(
        self, world: World, changed: dict[str, object], restarted: bool
    ) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(**changed)
            if not restarted:
                await self._asks(run)
        if restarted:
            async with world.run(terms=guarded(world, PINNED)) as run:
                await run.run_pass()
                await self._asks(run)

    async def _asks(self, run: Run) -> None:
        """The approval names the new address, and the books hold nothing for it meanwhile."""
        held = run.books()["held"]
        assert await question(run, "second") == ["address_not_pinned"]
        [row] = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])
        asked = approvals.of_payment(run.context.conn, row.id)
        assert asked is not None
        assert pay_to("thief") in asked.reasons[0].detail
        assert run.books()["held"] == held

    async def test_the_pinned_key_with_another_stake_part_is_an_unpinned_address(self, world: World) -> None:
        """B4: the same payment key with another stake part is not the address that was pinned."""
        shop = role_address("pay_to")
        franken = encode_address(shop.raw[:29] + b"\x66" * 28)
        assert franken.payment_key_hash == shop.payment_key_hash
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(pay_to=franken.text)
            assert await question(run, "second") == ["address_not_pinned"]

    async def test_a_dropped_revenue_share_needs_no_approval(self, world: World) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(splits=[CREATOR])
            assert (await run.pay("second")).state is State.IN_FLIGHT

    async def test_of_two_concurrent_first_payments_only_one_pins_its_address(self, world: World) -> None:
        """The writer decides one after the other, so the second payment sees what the first pinned."""
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            asks = []
            for name in ("one", "another"):
                world.settings(pay_to=pay_to(name), splits=[])
                asks.append(world.ask(name))
            ended = [row for row, _ in await asyncio.gather(*(run.agent.pay(ask) for ask in asks))]
            await run.agent.submitter.drain(60)
            [paid] = [row for row in ended if row.state is not State.AWAITING_APPROVAL]
            assert len(ended) == 2
            assert merchants.pins(run.context.conn, world.origin) == {Pin("pay_to", paid.outputs[0].address)}

    async def test_a_refused_payment_pins_no_address(self, world: World) -> None:
        async with world.run(terms=guarded(world, replace(PINNED, payments_in_flight_max=1))) as run:
            await run.run_pass()
            world.settings(price=str(2000 * ADA))
            assert (await refusal(run, "too much")).code == "limit_exceeded"
            assert merchants.pins(run.context.conn, world.origin) == frozenset()

    async def test_an_operator_can_pin_and_unpin_an_address_and_each_change_is_recorded(
        self, world: World
    ) -> None:
        """Each change is an event that names the operator."""
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            world.settings(splits=[])
            await run.pay("first")
            world.settings(pay_to=pay_to("new"))
            await pin(run.context, APP, "t", "pay_to", pay_to("new"))
            await pin(run.context, APP, "t", "pay_to", pay_to("new"))
            assert (await run.pay("second")).state is State.IN_FLIGHT
            await unpin(run.context, APP, "t", "pay_to", pay_to("new"))
            with pytest.raises(Refused, match="not_found"):
                await unpin(run.context, APP, "t", "pay_to", pay_to("new"))
            assert await question(run, "third") == ["address_not_pinned"]
            told = [
                (event, one["address"], one.get("why"), one.get("by"))
                for event, one in events_of(run, "address_pinned", "address_unpinned")
            ]
            assert told == [
                ("address_pinned", pay_to("pay_to"), "first_use", None),
                ("address_pinned", pay_to("new"), "operator", APP),
                ("address_unpinned", pay_to("new"), None, APP),
            ]

    async def test_pinning_an_address_of_another_network_is_refused(self, world: World) -> None:
        async with world.run() as run:
            mainnet = encode_address(b"\x61" + role_address("pay_to").raw[1:29]).text
            with pytest.raises(Refused, match="bad_request: address_invalid/wrong_network"):
                await pin(run.context, APP, "t", "pay_to", mainnet)

    async def test_with_addresses_in_the_config_a_payment_pins_no_others(self, world: World) -> None:
        from_file = frozenset({Pin("pay_to", pay_to("pay_to"))})
        async with world.run(terms=guarded(world, MerchantRules(from_file=from_file))) as run:
            await run.run_pass()
            assert await question(run, "with shares") == ["address_not_pinned"]
            world.settings(splits=[])
            await run.pay("without")
            assert merchants.pins(run.context.conn, world.origin) == frozenset()

    async def test_a_quote_says_that_the_address_is_not_pinned(self, world: World) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            assert (await run.agent.quote(world.ask("asked only"))).reasons == ()
            world.settings(pay_to=pay_to("thief"))
            quote = await run.agent.quote(world.ask("asked only"))
            assert [reason.code for reason in quote.reasons] == ["address_not_pinned"]

    async def test_of_several_offers_the_one_to_a_pinned_address_is_paid(self, world: World) -> None:
        """A thief's offer is skipped if the merchant's own follows; alone it needs an approval."""
        path = "/x402/report?day=1"
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            for accepts in (["pay_to"], ["thief", "pay_to"]):
                row, _ = await run.agent.pay(_offering(world, path, accepts, str(len(accepts))))
                assert row.outputs[0].address == pay_to("pay_to")
            row, _ = await run.agent.pay(_offering(world, path, ["thief"], "alone"))
            assert row.state is State.AWAITING_APPROVAL

    async def test_an_approved_address_is_pinned(self, world: World) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(pay_to=pay_to("new"), splits=[])
            assert (await approve(run, "second")).state is State.IN_FLIGHT
            assert (await run.pay("third")).state is State.IN_FLIGHT
            (told,) = [one for _, one in events_of(run, "address_pinned") if one["address"] == pay_to("new")]
            assert (told["why"], told["by"], told["via"]) == ("allowed", "app_somebody", "token")

    async def test_a_denied_address_is_not_pinned(self, world: World) -> None:
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(pay_to=pay_to("thief"))
            row = await run.pay("second")
            await run.agent.decisions.deny(row.id, SOMEBODY)
            assert await question(run, "third") == ["address_not_pinned"]

    async def test_the_last_pinned_address_cannot_be_unpinned(self, world: World) -> None:
        """With no pin left, the next payment would pin whatever address it pays."""
        world.settings(splits=[])
        async with world.run(terms=guarded(world, PINNED)) as run:
            await run.pay_in_block("first")
            world.settings(pay_to=pay_to("thief"))
            with pytest.raises(Refused, match="last_pinned_address"):
                await unpin(run.context, APP, "t", "pay_to", pay_to("pay_to"))
            assert await question(run, "second") == ["address_not_pinned"]
            await pin(run.context, APP, "t", "pay_to", pay_to("new"))
            await unpin(run.context, APP, "t", "pay_to", pay_to("pay_to"))
            assert merchants.pins(run.context.conn, world.origin) == {Pin("pay_to", pay_to("new"))}

    async def test_with_addresses_in_the_config_any_other_address_can_be_unpinned(self, world: World) -> None:
        from_file = frozenset({Pin("pay_to", pay_to("pay_to"))})
        async with world.run(terms=guarded(world, MerchantRules(from_file=from_file))) as run:
            await pin(run.context, APP, "t", "pay_to", pay_to("new"))
            await unpin(run.context, APP, "t", "pay_to", pay_to("new"))
            assert merchants.pins(run.context.conn, world.origin) == frozenset()

    async def test_an_approval_does_not_cover_a_reason_that_arose_later(self, world: World) -> None:
        """Two first payments await approval; approving one pins its address, so the other has a new reason."""
        terms = guarded(world, PINNED)
        above = {"lovelace": 5 * ADA}
        async with world.run(terms=lambda now: replace(terms(now), approval_required_above=above)) as run:
            await run.run_pass()
            rows = []
            for name in ("one", "another"):
                world.settings(pay_to=pay_to(name), splits=[])
                assert await question(run, name) == ["approval_required"]
                rows.append(payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])[-1])
            await run.agent.decisions.approve(rows[0].id, SOMEBODY)
            with pytest.raises(Refused, match=r"address_not_pinned.*The approval was not for that"):
                await run.agent.decisions.approve(rows[1].id, SOMEBODY)
            assert run.state(rows[1].id) is State.AWAITING_APPROVAL
            assert merchants.pins(run.context.conn, world.origin) == {Pin("pay_to", pay_to("one"))}

    async def test_a_new_reason_needs_a_new_approval_after_the_first_has_timed_out(self, world: World) -> None:
        """The refusal says so, and approving again does not help."""
        rules = MerchantRules(price_rise_percent_max=25)
        above = {"lovelace": 5 * ADA}
        terms = guarded(world, rules)
        world.settings(timeout=7_200, splits=[])
        asking = {"approval_required_above": above, "approval_timeout_s": 600}
        async with world.run(terms=lambda now: replace(terms(now), **asking)) as run:  # type: ignore[arg-type]
            await run.run_pass()
            rows = []
            for price in (10, 20):
                world.settings(price=str(price * ADA))
                assert await question(run, f"for {price}") == ["approval_required"]
                rows.append(payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])[-1])
            await run.agent.decisions.approve(rows[0].id, SOMEBODY)
            for _ in range(2):
                with pytest.raises(Refused, match=r"price_changed.*Once it has expired, the same call requests"):
                    await run.agent.decisions.approve(rows[1].id, SOMEBODY)
            await pass_time_of(world, run, 601)
            await run.agent.decisions.deny_what_is_over()
            assert run.context.payment(rows[1].id).problem.name == "approval_denied/timeout"
            assert await question(run, "for 20") == ["price_changed", "approval_required"]
            again = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])[-1]
            assert (await run.agent.decisions.approve(again.id, SOMEBODY)).attempt.tx_id is not None


def _offering(world: World, path: str, payees: list[str], key: str) -> PaymentRequest:
    """A PaymentRequest for an x402 version 1 answer with one offer per payee."""
    entry = {
        "scheme": "exact",
        "network": DEVNET.wire,
        "maxAmountRequired": "2000000",
        "asset": "lovelace",
        "resource": world.origin + path,
        "description": "",
        "mimeType": "application/json",
        "maxTimeoutSeconds": 300,
    }
    body = {"x402Version": 1, "error": "", "accepts": [entry | {"payTo": pay_to(name)} for name in payees]}
    return PaymentRequest(
        app_id=APP,
        origin=world.origin,
        response=make_response(402, {"content-type": "application/json"}, json.dumps(body)),
        received="{}",
        request=MerchantRequest("GET", path, hashlib.sha256(b"").hexdigest()),
        idempotency_key=key,
    )


class TestPriceRise:
    DRIFT = MerchantRules(price_rise_percent_max=25)

    async def test_a_price_over_25_percent_above_the_agreed_one_needs_an_approval(self, world: World) -> None:
        world.settings(price=str(4 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            paid = await run.pay_in_block("first")
            agreed = {
                "call": "POST /chat",
                "asset": "lovelace",
                "calls": "1",
                "units": "4000000",
                "payment": paid.id,
            }
            assert events_of(run, "price_agreed") == [("price_agreed", {"merchant": world.origin} | agreed)]
            world.settings(price="5000000")
            await run.pay_in_block("a quarter more")
            world.settings(price="5000001")
            assert await question(run, "and a bit") == ["price_changed"]
            world.settings(price="1000000")
            assert (await run.pay("cheaper")).state is State.IN_FLIGHT

    async def test_small_price_rises_that_add_up_to_over_25_percent_need_an_approval(self, world: World) -> None:
        """Each step is small and was paid, but the rise is measured from the price first agreed to."""
        world.settings(price=str(4 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            for price in (4_000_000, 4_400_000, 4_840_000):
                world.settings(price=str(price))
                await run.pay_in_block(f"at {price}")
            world.settings(price="5324000")
            assert await question(run, "one step more") == ["price_changed"]

    async def test_an_approval_raises_the_agreed_price_and_never_lowers_it(self, world: World) -> None:
        world.settings(price=str(2 * ADA), splits=[])
        terms = guarded(world, self.DRIFT)
        above = {"lovelace": 11 * ADA}
        async with world.run(terms=lambda now: replace(terms(now), approval_required_above=above)) as run:
            await run.pay_in_block("first")
            world.settings(price=str(20 * ADA))
            assert (await approve(run, "second")).state is State.IN_FLIGHT
            world.settings(price=str(12 * ADA))
            await approve(run, "cheaper, and above the threshold")
            world.settings(price=str(25 * ADA))
            assert await question(run, "third") == ["approval_required"]
            agreed = [told["units"] for _, told in events_of(run, "price_agreed")]
            assert agreed == ["2000000", "20000000"]

    async def test_the_same_price_for_fewer_requests_needs_an_approval(self, world: World) -> None:
        """The price of a batch is divided by its requests: one request may not cost as much as four."""
        world.settings(batch=4, price=str(10 * ADA), splits=[], timeout=7200)
        async with world.run(terms=guarded(world, MerchantRules(price_rise_percent_max=0))) as run:
            await run.run_pass()
            world.settings(batch=1)
            dear = world.ask("one call, at the price of four")
            world.settings(price=str(ADA * 5 // 2))
            fair = world.ask("one call, at its own price")
            world.settings(batch=4, price=str(10 * ADA))
            await run.agent.deliveries.record_delivery((await run.pay_in_block("four calls")).id, 200)
            assert events_of(run, "price_agreed")[0][1]["calls"] == "4"
            row, _ = await run.agent.pay(dear)
            asked = approvals.of_payment(run.context.conn, row.id)
            assert asked is not None
            assert [reason.code for reason in asked.reasons] == ["price_changed"]
            assert "10 ADA for 1 call" in asked.reasons[0].detail
            assert "10 ADA for 4 calls" in asked.reasons[0].detail
            assert (await run.agent.pay(fair))[0].state is not State.AWAITING_APPROVAL

    async def test_more_requests_in_a_batch_do_not_hide_a_price_rise(self, world: World) -> None:
        """The merchant alone says how many requests a batch has, so the total price counts as well."""
        world.settings(price=str(2 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            await run.pay_in_block("first")
            world.settings(price=str(40 * ADA), batch=1000)
            assert await question(run, "a thousand calls") == ["price_changed"]
            row = await approve(run, "a thousand calls")
            await run.settle_down()
            await run.agent.deliveries.record_delivery(row.id, 200)
            world.settings(price=str(2 * ADA), batch=1)
            assert (await run.pay("one more call")).state is State.IN_FLIGHT

    async def test_an_approval_of_an_amount_does_not_accept_a_price_rise(self, world: World) -> None:
        """Each step needs an approval for its amount only, so the approvals do not accept the price rise."""
        terms = guarded(world, self.DRIFT)
        async with world.run(
            terms=lambda now: replace(terms(now), approval_required_above={"lovelace": ADA})
        ) as run:
            await run.run_pass()
            for price in (4_000_000, 5_000_000):
                world.settings(price=str(price), splits=[])
                await approve(run, f"at {price}")
                await run.settle_down()
            world.settings(price="6250000")
            assert await question(run, "one step more") == ["price_changed", "approval_required"]
            assert [told["units"] for _, told in events_of(run, "price_agreed")] == ["4000000"]

    async def test_the_first_price_in_another_asset_needs_an_approval(self, world: World) -> None:
        token = "a" * 56 + "746f6b"
        world.settings(price=str(2 * ADA), splits=[])
        terms = guarded(world, self.DRIFT)
        limits = (*world.terms.limits, *daily(10**12, 10**12, token))
        async with world.run(terms=lambda now: replace(terms(now), limits=limits)) as run:
            await run.run_pass()
            world.fund(20 * ADA, assets={token: 10**9})
            await run.settle_down(2)
            await run.pay_in_block("in ADA")
            world.settings(asset=token, price="900")
            assert await question(run, "in a token") == ["price_changed"]
            await approve(run, "in a token")
            await run.settle_down()
            assert (await run.pay("in it again")).state is State.IN_FLIGHT
            agreed = [(told["asset"], told["units"]) for _, told in events_of(run, "price_agreed")]
            assert agreed == [("lovelace", "2000000"), (token, "900")]

    async def test_an_unconfirmed_payment_sets_no_agreed_price(self, world: World) -> None:
        world.settings(price=str(2 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            await run.run_pass()
            await run.pay("first")
            world.settings(price=str(20 * ADA))
            assert (await run.pay("before it is in a block")).state is State.IN_FLIGHT

    async def test_agreed_prices_are_kept_per_path_without_the_query(self, world: World) -> None:
        world.settings(price=str(2 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            await run.pay_in_block("first")
            world.settings(price=str(20 * ADA))
            asked = world.ask("elsewhere")
            assert asked.request is not None
            other = replace(asked, request=replace(asked.request, path="/other"))
            assert (await run.agent.pay(other))[1]
            queried = replace(world.ask("again"), request=replace(asked.request, path="/chat?cheap=1"))
            row, _ = await run.agent.pay(queried)
            assert row.state is State.AWAITING_APPROVAL

    async def test_agreed_prices_survive_a_restart(self, world: World) -> None:
        world.settings(price=str(2 * ADA), splits=[])
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            await run.pay_in_block("first")
        world.settings(price=str(20 * ADA))
        async with world.run(terms=guarded(world, self.DRIFT)) as run:
            await run.run_pass()
            assert await question(run, "second") == ["price_changed"]


class TestUnservedStreak:
    STOP = MerchantRules(stop_after_unserved=2)

    async def test_a_merchant_that_leaves_two_payments_unserved_is_not_paid_until_resumed(
        self, world: World
    ) -> None:
        """One alert; the stop survives a restart; proofs of paid invoices can still be shown."""
        async with world.run(terms=guarded(world, self.STOP)) as run:
            first = await leave_unserved(world, run, "first")
            await run.agent.deliveries.record_delivery(first.id, 402)  # the same payment counts once
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 1
            second = await leave_unserved(world, run, "second")
            assert second.delivery is Delivery.PAID_NOT_SERVED
            assert alerts.raised(run.context.conn, "merchant_stopped") == [f"merchant:{world.origin}"]
        async with world.run(terms=guarded(world, self.STOP)) as run:
            await run.run_pass()
            told = await refusal(run, "third")
            assert told.code == "merchant_stopped"
            merchant = run.context.config.merchants[world.origin]
            assert retry_headers(run.context.payment(second.id), merchant, world.address)["X-Payment"]
            served = await run.agent.deliveries.record_delivery(second.id, 200)
            assert served.delivery is Delivery.ACCEPTED
            assert (await refusal(run, "fourth")).code == "merchant_stopped", "only an operator resumes a merchant"
            await resume(run.context, APP, "t")
            await resume(run.context, APP, "t")
            assert (await run.pay("fifth")).state is State.IN_FLIGHT
            told_of = [name for name, _ in events_of(run, "merchant_stopped", "merchant_resumed")]
            assert told_of == ["merchant_stopped", "merchant_resumed"]
            assert alerts.raised(run.context.conn, "merchant_stopped") == []

    async def test_a_clock_set_forward_does_not_make_a_payment_unserved(self, tmp_path: Path) -> None:
        """A merchant that is a block behind answers 402 to a paid request, whatever our clock says."""
        with world_apart(tmp_path) as world:
            world.fund(*[50 * ADA] * 2)
            async with world.run(terms=guarded(world, MerchantRules(stop_after_unserved=1))) as run:
                row = await run.pay_in_block("paid")
                world.clock.ahead_ms = 86_400_000
                await run.run_pass()
                assert (await run.agent.deliveries.record_delivery(row.id, 402)).delivery is Delivery.PRESENTED
                unpaid = make_response(402, {}, world.call("another").text)
                row, advice = await run.agent.deliveries.take_answer(row.id, unpaid)
                assert (row.delivery, advice.again_after_s is None) == (Delivery.PRESENTED, False)
                world.clock.ahead_ms = 0
                assert merchants.unserved_streak(run.context.conn, world.origin).count == 0
                assert (await run.agent.deliveries.record_delivery(row.id, 200)).delivery is Delivery.ACCEPTED

    async def test_a_served_payment_resets_the_unserved_streak(self, world: World) -> None:
        async with world.run(terms=guarded(world, self.STOP)) as run:
            await leave_unserved(world, run, "first")
            served = await run.pay_in_block("second")
            await run.agent.deliveries.record_delivery(served.id, 200)
            await leave_unserved(world, run, "third")
            assert merchants.unserved_streak(run.context.conn, world.origin).stopped_at_ms is None
            assert (await run.pay("fourth")).state is State.IN_FLIGHT

    async def test_a_payment_to_a_stopped_merchant_cannot_be_approved_until_it_is_resumed(
        self, world: World
    ) -> None:
        """The payment keeps waiting for approval until the operator has resumed the merchant."""
        terms = guarded(world, MerchantRules(stop_after_unserved=1))
        above = {"lovelace": 15 * ADA}
        async with world.run(terms=lambda now: replace(terms(now), approval_required_above=above)) as run:
            unserved = await run.pay_in_block("not served")
            world.settings(price=str(20 * ADA), timeout=LONG_S)
            assert await question(run, "dear") == ["approval_required"]
            [row] = payments.payments_in(run.context.conn, [State.AWAITING_APPROVAL])
            world.clock.ahead_ms += 301_000
            await run.settle_down()
            await run.agent.deliveries.record_delivery(unserved.id, 402)
            with pytest.raises(Refused, match="merchant_stopped"):
                await run.agent.decisions.approve(row.id, SOMEBODY)
            assert run.state(row.id) is State.AWAITING_APPROVAL
            await resume(run.context, APP, "t")
            await run.agent.decisions.approve(row.id, SOMEBODY)
            assert run.state(row.id) in (State.SIGNED, State.IN_FLIGHT)

    async def test_an_unsigned_payment_is_rejected_when_its_merchant_is_stopped(self, world: World) -> None:
        signer = BadSigner(world.account.signer, trouble="mended")
        async with world.run(terms=guarded(world, MerchantRules(stop_after_unserved=1)), signer=signer) as run:
            unserved = await run.pay_in_block("not served")
            world.clock.ahead_ms += 301_000
            await run.settle_down()
            signer.trouble = "fails"
            with pytest.raises(OSError, match="the signer is gone"):
                await run.agent.pay(world.ask("unsigned"))
            await run.agent.deliveries.record_delivery(unserved.id, 402)
            signer.trouble = "mended"
            await run.settle_down()
            [row] = [one for one in payments.payments_in(run.context.conn, list(State)) if one.id != unserved.id]
            assert (row.state, row.problem.name) == (State.REJECTED, "merchant_stopped")
            assert run.context.metrics.refusals["merchant_stopped"] == 1, "counted, since no caller is waiting"
            assert "held" not in run.books()

    async def test_a_lost_payment_to_a_stopped_merchant_is_cancelled(self, world: World) -> None:
        async with world.run(terms=guarded(world, MerchantRules(stop_after_unserved=1))) as run:
            unserved = await run.pay_in_block("not served")
            world.settings(timeout=LONG_S)
            row = await lose(world, run)
            world.clock.ahead_ms += 301_000
            await run.settle_down()
            await run.agent.deliveries.record_delivery(unserved.id, 402)
            assert (await refusal(run, "another")).code == "merchant_stopped"
            await pass_time_of(world, run, TTL_S + 1)
            assert [one.kind for one in attempts(run, row)] == ["pay", "cancel"]
            assert run.context.payment(row.id).problem.name == "merchant_stopped"
            await wait_for_void(world, run)
            assert run.state(row.id) is State.VOID
            assert run.owned() == world.on_chain()


class TestUnservedWithoutRetries:
    """D6, where no client retries once the invoice has expired, and each new request would be paid again."""

    STOP = MerchantRules(stop_after_unserved=3)

    async def test_a_merchant_is_stopped_after_three_payments_unserved_for_an_hour(self, world: World) -> None:
        """It refuses twice before each invoice expires, and every request is a new one; one event per payment."""
        async with world.run(terms=guarded(world, self.STOP)) as run:
            for message in ("one", "two", "three"):
                row = await run.pay_in_block(message)
                await run.agent.deliveries.record_delivery(row.id, 500)
                await run.agent.deliveries.record_delivery(row.id, 402)
                await pass_an_hour(run)
                await run.agent.deliveries.give_up_unserved()
                assert run.context.payment(row.id).delivery is Delivery.PAID_NOT_SERVED
                assert run.events(row.id).count("delivery_give_up") == 1
            assert alerts.raised(run.context.conn, "merchant_stopped") == [f"merchant:{world.origin}"]
            (_, told) = events_of(run, "merchant_stopped")[0]
            assert (told["app"], told["payment"]) == (APP, row.id), "the app whose report stopped it"
            assert (await refusal(run, "four")).code == "merchant_stopped"
            assert is_sound(run)

    async def test_an_invoice_valid_for_a_day_still_counts_as_unserved_after_an_hour(self, world: World) -> None:
        world.settings(timeout=86_400)
        async with world.run(terms=guarded(world, self.STOP)) as run:
            row = await run.pay_in_block("one")
            await run.agent.deliveries.record_delivery(row.id, 402)
            await pass_an_hour(run)
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 1

    async def test_a_slow_merchant_has_an_hour_to_serve(self, world: World) -> None:
        async with world.run(terms=guarded(world, self.STOP)) as run:
            row = await run.pay_in_block("one")
            await run.agent.deliveries.record_delivery(row.id, 402)
            await pass_an_hour(run, but_s=60)
            assert run.context.payment(row.id).delivery is Delivery.PRESENTED
            world.clock.ahead_ms += 3_600_000  # without a block: the local clock alone does not count
            await run.agent.deliveries.give_up_unserved()
            assert run.context.payment(row.id).delivery is Delivery.PRESENTED
            assert (await run.agent.deliveries.record_delivery(row.id, 200)).delivery is Delivery.ACCEPTED
            await pass_an_hour(run)
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 0

    async def test_a_payment_served_late_resets_the_unserved_streak(self, world: World) -> None:
        async with world.run(terms=guarded(world, self.STOP)) as run:
            row = await run.pay_in_block("one")
            await run.agent.deliveries.record_delivery(row.id, 402)
            await pass_an_hour(run)
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 1
            assert (await run.agent.deliveries.record_delivery(row.id, 200)).delivery is Delivery.ACCEPTED
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 0

    async def test_time_while_the_daemon_is_down_does_not_count_against_a_merchant(self, world: World) -> None:
        """Clients could not retry meanwhile, so the hour starts again with the daemon."""
        async with world.run(terms=guarded(world, self.STOP)) as run:
            row = await run.pay_in_block("one")
            await run.agent.deliveries.record_delivery(row.id, 402)
        world.clock.ahead_ms += 3_605_000
        async with world.run(terms=guarded(world, self.STOP)) as run:
            await run.agent.deliveries.give_up_unserved()
            await run.settle_down()
            await pass_an_hour(run, but_s=60)
            assert run.context.payment(row.id).delivery is Delivery.PRESENTED
            await pass_an_hour(run)
            assert run.context.payment(row.id).delivery is Delivery.PAID_NOT_SERVED

    async def test_clients_that_report_nothing_or_hang_up_do_not_count_against_a_merchant(
        self, world: World
    ) -> None:
        """Either no proof was shown, as far as we know, or the merchant served and the client hung up."""
        async with world.run(terms=guarded(world, self.STOP)) as run:
            silent = await run.pay_in_block("never told")
            cut = await run.pay_in_block("hung up")
            await run.agent.deliveries.take_answer(cut.id, make_response(200, {"content-type": "text/plain"}, ""))
            await pass_an_hour(run)
            assert run.context.payment(silent.id).delivery is Delivery.NOT_PRESENTED
            assert run.context.payment(cut.id).delivery is Delivery.PRESENTED
            assert merchants.unserved_streak(run.context.conn, world.origin).count == 0


async def pass_an_hour(run: Run, but_s: int = 0) -> None:
    """Let a little over an hour of chain time pass, then look for unserved payments."""
    await run.agent.deliveries.give_up_unserved()
    run.world.clock.ahead_ms += 3_605_000 - but_s * 1000
    await run.settle_down()
    await run.agent.deliveries.give_up_unserved()


async def test_an_invoice_sent_again_with_other_terms_is_refused_and_raises_one_alert(world: World) -> None:
    """D1: the changed invoice is never paid; the alert stays until the operator resumes the merchant."""
    async with world.run() as run:
        await run.run_pass()
        for message in ("first", "second"):
            answer = world.call(message)
            await run.agent.pay(world.ask_of(answer))
            with pytest.raises(Refused, match="terms_changed"):
                await run.agent.pay(world.ask_of(answer, body=answer.text.replace("10000000", "10000001")))
        assert alerts.raised(run.context.conn, "terms_changed") == [f"terms:{world.origin}"]
        await run.agent.submitter.drain(60)
        assert len(world.waiting()) == 2
        await resume(run.context, APP, "t")
        assert alerts.raised(run.context.conn, "terms_changed") == []


async def test_an_invoice_sent_again_for_fewer_requests_is_refused(world: World) -> None:
    world.settings(batch=4)
    async with world.run() as run:
        await run.run_pass()
        answer = world.call("hello")
        fewer = answer.text.replace('"batchTarget":4', '"batchTarget":3')
        assert fewer != answer.text
        await run.agent.pay(world.ask_of(answer))
        with pytest.raises(Refused, match="terms_changed"):
            await run.agent.pay(world.ask_of(answer, body=fewer))


class TestPaymentsInFlight:
    async def test_payments_in_flight_to_one_merchant_are_limited(self, world: World) -> None:
        """K4: a merchant whose payments do not confirm ties up a limited number of UTxOs."""
        async with world.run(terms=guarded(world, MerchantRules(payments_in_flight_max=2))) as run:
            await run.run_pass()
            for message in ("first", "second"):
                await run.pay(message)
            before = payments.payment_counts(run.context.conn)
            told = await refusal(run, "third")
            assert (told.code, told.problem.retryable) == ("merchant_in_flight_limit", True)
            assert payments.payment_counts(run.context.conn) == before, "a retryable refusal leaves no row"
            await run.settle_down()
            assert (await run.pay("third")).state is State.IN_FLIGHT


class TestNextInvoice:
    @pytest.mark.parametrize("changed", [{"pay_to": pay_to("thief")}, {}])
    async def test_a_lost_payment_does_not_move_to_an_invoice_with_another_payee(
        self, world: World, changed: dict[str, object]
    ) -> None:
        world.settings(timeout=600, splits=[])
        async with world.run(terms=guarded(world, PINNED)) as run:
            first = await lose(world, run)
            await pass_time_of(world, run, 601)
            world.settings(timeout=LONG_S, **changed)
            ended, _ = await run.agent.pay(world.ask("hello"))
            assert ended.id == first.id
            assert (len(attempts(run, ended)) == 1) == bool(changed)


def test_the_config_sets_the_rules_of_each_merchant(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        'network = "preprod"\n[[chain.providers]]\nkind = "blockfrost"\nbase_url = "http://127.0.0.1:1/api/v0"\n'
        f'[merchants.t]\norigin = "https://a.example"\npay_to = ["{pay_to("pay_to")}"]\n'
        f'split_to = ["{pay_to("platform")}", "{pay_to("creator")}"]\nstop_after_unserved = 5\n'
    )
    terms = make_config(load_settings(config, {"HOME": str(tmp_path)}), role_address("wallet"), Redactor())
    from_file = {Pin("pay_to", pay_to("pay_to"))} | {
        Pin("split", pay_to(name)) for name in ("platform", "creator")
    }
    held = MerchantRules(
        first_use=True,
        from_file=frozenset(from_file),
        price_rise_percent_max=25,
        stop_after_unserved=5,
        payments_in_flight_max=100,
    )
    assert terms.rules("https://a.example") == held
    assert terms.rules("https://b.example") == terms.rules(None) == MerchantRules()
