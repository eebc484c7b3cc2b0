"""Random payments, approvals, cancels, forks and time jumps, checked against a model of the documented limits.

The model follows docs/how-to/limit-spending.md. It reads amounts from transaction bytes and times from blocks, and
knows nothing of spans, holds or the ledger. For each window it gives the least that must count and the most that
may; every answer of the agent has to lie between the two. A quote has to match the payment that follows.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from kit.agent import ADA, APP, Clock, Run, World
from kit.payments import is_sound

from payagent.agent.base.config import MerchantConfig
from payagent.agent.base.requests import Approver, MerchantRequest, PaymentQuote, PaymentRequest
from payagent.agent.operator.limits import set_limits
from payagent.core.aggregate import PaymentRow
from payagent.core.changes import SetHold
from payagent.core.payment.machine import State
from payagent.core.policy import Scope, Window, limits_of
from payagent.core.problems import Refused
from payagent.devnet.decode import decode_tx
from payagent.devnet.merchant import role_address
from payagent.devnet.server import DevnetThread
from payagent.dialects import make_response
from payagent.store import executor
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, limit_counters, payments

GOLD, LEAD = "aa" * 28 + b"GOLD".hex(), "bb" * 28 + b"LEAD".hex()
ASSETS = ("lovelace", GOLD, LEAD)
APPS = (APP, "app_two", "app_three")
NAMES = {APP: "test", "app_two": "two", "app_three": "three"}
HOUR_S, DAY_S = 3_600, 86_400
LENGTH_S = {"per_hour": HOUR_S, "per_day": DAY_S, "per_week": 7 * DAY_S, "per_month": 30 * DAY_S}
LONGER_S = {"per_hour": 300, "per_day": 300, "per_week": 6 * HOUR_S, "per_month": 6 * HOUR_S}
"""How much longer than its window a payment may count."""

OPEN = 10**12
"""The time at which an open payment counts as spent, in seconds: later than any window."""


class Key(NamedTuple):
    """A limit, as an operator names it; '' means any."""

    app: str
    merchant: str
    asset: str
    window: str


@dataclass
class Bought:
    """A payment, by its bytes. At least `least` must count against limits, and at most `most` may."""

    id: str
    app: str
    merchant: str
    least: dict[str, int]
    most: dict[str, int]
    landed_s: int = OPEN
    posted_s: int = OPEN
    first: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = dict(self.most)


@dataclass
class Allowed:
    """The model: limits set by the operator, and payments made. `now_s` is the time of the newest block seen."""

    limits: dict[Key, int]
    now_s: int = 0
    bought: dict[str, Bought] = field(default_factory=dict)

    def binding(self, app: str, merchant: str, takes: Iterable[str]) -> dict[Key, int]:
        assets = set(takes)
        return {
            key: most
            for key, most in self.limits.items()
            if key.asset in assets and key.app in ("", app) and key.merchant in ("", merchant)
        }

    def spendable(self) -> set[str]:
        over_time = (key for key in self.limits if key.window != "per_payment")
        return {key.asset for key in over_time if not key.app and not key.merchant}

    def least(self, key: Key) -> int:
        """What must count: open payments, and those that landed within the window."""
        since_s = self.now_s - LENGTH_S.get(key.window, self.now_s + 1)
        return sum(one.least.get(key.asset, 0) for one in self._of(key) if one.landed_s > since_s)

    def most(self, key: Key) -> int:
        """What may still count: payments posted within the window and one span more."""
        since_s = self.now_s - LENGTH_S.get(key.window, self.now_s + 1) - LONGER_S.get(key.window, 0)
        return sum(one.most.get(key.asset, 0) for one in self._of(key) if one.posted_s > since_s)

    def _of(self, key: Key) -> Iterator[Bought]:
        if key.window != "per_payment":
            for one in self.bought.values():
                if key.app in ("", one.app) and key.merchant in ("", one.merchant):
                    yield one


@dataclass
class Day:
    """One random run."""

    world: World
    run: Run
    allowed: Allowed
    random: Random
    seen: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    asked: dict[str, PaymentRequest] = field(default_factory=dict)

    # --- requests

    def ask(self, app: str, merchant: str, asset: str, units: int, most: int | None) -> PaymentRequest:
        self.calls += 1
        detail = {
            "version": "0.1",
            "invoiceId": f"inv-{self.calls}",
            "chain": "cardano-devnet",
            "asset": "ADA" if asset == "lovelace" else f"{asset[:56]}.{asset[56:]}",
            "amountUnits": str(units),
            "decimals": 6 if asset == "lovelace" else 0,
            "payTo": role_address("pay_to").text,
            "timeout": self.random.choice([600, 600, 7_200, 80_000]),
            "extra": {"lovelace": asset == "lovelace", "babel": False, "partner": "demo", "batchTarget": 1},
        }
        return PaymentRequest(
            app_id=app,
            origin=merchant,
            response=make_response(402, {"content-type": "application/json"}, json.dumps({"detail": detail})),
            received="{}",
            request=MerchantRequest("POST", f"/chat/{self.calls}", "0" * 64),
            max_total_units=most,
        )

    def some_ask(self) -> PaymentRequest:
        """A random request; often one that just fits a limit, or just does not."""
        random = self.random
        app, merchant = random.choice(APPS), random.choice(list(self.world.terms.merchants))
        asset = random.choice(["lovelace", "lovelace", GOLD, LEAD])
        units = random.randint(1, 6) * ADA if asset == "lovelace" else random.randint(1, 300)
        near = self.allowed.binding(app, merchant, [asset])
        if near and random.random() < 0.4:
            key = random.choice(sorted(near))
            left = near[key] - random.choice([self.allowed.least(key), self.allowed.most(key)])
            if asset == "lovelace":
                left -= random.choice([168_000, 170_000, 166_000, random.randint(160_000, 180_000)])
            units = max(left + random.randint(-3, 3), ADA if asset == "lovelace" else 1)
        most = random.randint(1, 5 * ADA) if random.random() < 0.1 else None
        return self.ask(app, merchant, asset, min(units, 60 * ADA), most)

    # --- actions

    async def pay(self) -> None:
        wanted = [self.some_ask() for _ in range(self.random.choice([1, 1, 1, 2, 4]))]
        before = {key: self.allowed.least(key) for key in self.allowed.limits}
        told = await self._quote(wanted[0]) if len(wanted) == 1 else None
        answers = await asyncio.gather(*(self.run.agent.pay(one) for one in wanted), return_exceptions=True)
        await self.run.agent.submitter.drain(60)
        paid = [(answer[0], one) for answer, one in zip(answers, wanted, strict=True) if isinstance(answer, tuple)]
        for row, one in sorted(paid, key=lambda pair: pair[0].seq):
            self._admitted(row, one)
        for answer, one in zip(answers, wanted, strict=True):
            if isinstance(answer, BaseException):
                self._refused(answer, one, before)
            if told is not None:
                self._as_quoted(told, answer)

    async def _quote(self, ask: PaymentRequest) -> PaymentQuote | Refused:
        try:
            return await self.run.agent.quote(ask)
        except Refused as refused:
            return refused

    async def pass_time(self) -> None:
        """Let time pass; often to just before or just after a payment leaves a window."""
        random = self.random
        about_s = random.choice([10, 250, 620, 620, 1_800, HOUR_S, DAY_S, 30 * DAY_S])
        spent = [one for one in self.allowed.bought.values() if one.posted_s != OPEN]
        if spent and random.random() < 0.6:
            one, window = random.choice(spent), random.choice(["per_hour", "per_day", "per_day", "per_week"])
            off_s = random.choice([0, LONGER_S[window]])
            about_s = max(one.posted_s + LENGTH_S[window] + off_s - self.allowed.now_s, 10)
        self.world.clock.ahead_ms += (about_s + random.randint(-20, 20)) * 1000
        await self.run_pass()

    async def run_pass(self) -> None:
        """A block, a pass over it, and the model brought up to date."""
        await self.run.settle_down()
        await self.run.agent.decisions.deny_what_is_over()
        await self.run.agent.submitter.drain(60)
        self.take_stock()

    def take_stock(self) -> None:
        self.allowed.now_s = max(self.allowed.now_s, *self._block_times().values())
        for one in self.allowed.bought.values():
            row = self.run.context.payment(one.id)
            was_over = one.posted_s != OPEN
            if row.state in (State.REJECTED, State.DENIED):
                one.least, one.most = {}, {}
            elif row.state in (State.VOID, State.CONFIRMED, State.SETTLED):
                if row.state is State.VOID:
                    one.least = one.most = {"lovelace": row.attempt.fee_lovelace or 0}
                else:
                    one.least = self._takes(row)
                if not was_over:
                    one.landed_s, one.posted_s = (
                        self._block_times().get(row.attempt.tx_id or "", 0),
                        self.allowed.now_s,
                    )
                    self.seen[str(row.state)] += 1
            elif row.state is not State.AWAITING_APPROVAL:
                if was_over:
                    self.seen["reopened"] += 1
                one.least, one.most, one.landed_s, one.posted_s = one.first, one.first, OPEN, OPEN
                if row.attempt.cbor and row.state is not State.CANCELLING:
                    one.least = self._takes(row)
                    self.seen["turned"] += one.least != one.first

    def _block_times(self) -> dict[str, int]:
        def times(devnet: object) -> dict[str, int]:
            start_s, blocks = devnet.node.system_start_s, devnet.chain.blocks  # type: ignore[attr-defined]
            found = {tx.tx_id: start_s + block.slot for block in blocks for tx in block.txs}
            return found | {"": start_s + blocks[-1].slot}

        return self.world.devnet.run(times)

    async def roll_back(self) -> None:
        self.world.control("rollback", depth=self.random.choice([1, 2]))
        await self.run_pass()

    async def lose(self) -> None:
        """From now on submissions are lost, or no longer lost."""
        if self.random.random() < 0.5:
            self.world.fault("submit", "drop")
        else:
            self.world.control("faults", clear=True)

    async def come_again(self) -> None:
        """The same request with another invoice, cheaper or more expensive."""
        rows = payments.payments_in(self.run.context.conn, [State.IN_FLIGHT])
        rows = [row for row in rows if row.id in self.asked]
        if not rows:
            return
        row = self.random.choice(rows)
        before = self.asked[row.id]
        units = max(1, row.outputs[0].units + self.random.choice([-ADA, -1, 0, 1, ADA]))
        ask = self.ask(before.app_id, before.origin, row.outputs[0].asset, units, None)
        again, is_new = await self.run.agent.pay(replace(ask, request=before.request))
        await self.run.agent.submitter.drain(60)
        assert (again.id, is_new) == (row.id, False)
        self.seen["again"] += 1
        self.take_stock()

    async def set_a_limit(self) -> None:
        random, merchants = self.random, list(self.world.terms.merchants)
        app, merchant = random.choice(["", "", *APPS]), random.choice(["", "", *merchants])
        asset, window = random.choice(["lovelace", *ASSETS]), random.choice(list(Window))
        units: int | None = random.choice([None, None, *((5, 9, 20, 60) if window != "total" else (100, 200))])
        most = None if units is None else units * (ADA if asset == "lovelace" else 40)
        names = {origin: one.name for origin, one in self.world.terms.merchants.items()}
        await set_limits(self.run.context, APP, NAMES.get(app), names.get(merchant), asset, {window: most})
        key = Key(app, merchant, asset, window)
        self.allowed.limits.pop(key, None)
        of_the_file = from_file(merchants).get(key)
        if most is not None or of_the_file is not None:
            self.allowed.limits[key] = of_the_file if most is None else most  # type: ignore[assignment]

    async def decide(self) -> None:
        waiting = payments.payments_in(self.run.context.conn, [State.AWAITING_APPROVAL])
        if not waiting:
            return
        row, by = self.random.choice(waiting), Approver("token", "app_somebody")
        if self.random.random() < 0.3:
            await self.run.agent.decisions.deny(row.id, by)
            self.take_stock()
            return
        asked = self.allowed.bought.pop(row.id)
        before = {key: self.allowed.least(key) for key in self.allowed.limits}
        try:
            decided = await self.run.agent.decisions.approve(row.id, by)
        except Refused as refused:
            self.seen[f"approve {refused.code}"] += 1
            self._kept_open(refused, asked, before)
            self.allowed.bought[row.id] = asked
            self.take_stock()
            return
        await self.run.agent.submitter.drain(60)
        self._counts(decided.id, asked.app, asked.merchant, self._takes(self.run.context.payment(decided.id)))
        self.seen["approved"] += 1

    def _kept_open(self, refused: Refused, asked: Bought, before: Mapping[Key, int]) -> None:
        """Check the refusal of an approval."""
        if refused.code == "limit_exceeded":
            self._justified(refused, asked.app, asked.merchant, before)
        assert refused.code in NOT_CARRIED_OUT, refused

    async def resolve(self) -> None:
        rows = payments.payments_in(self.run.context.conn, [State.IN_FLIGHT])
        if rows:
            self.world.clock.ahead_ms += 1_000  # two cancels within one second would be the same transaction
            await self.run.agent.lifecycle.resolve(self.random.choice(rows).id, APP)

    async def send(self) -> None:
        """A transfer of the operator, which no limit restricts or counts."""
        with suppress(Refused):  # the wallet may be empty
            await self.run.agent.transfers.send(APP, role_address("thief"), "lovelace", 2 * ADA)

    # --- checks

    def _takes(self, row: PaymentRow) -> dict[str, int]:
        """What the transaction takes out of the wallet."""
        tx = decode_tx(row.attempt.cbor or b"")
        takes = {"lovelace": tx.fee_lovelace}
        for output in tx.outputs:
            if output.address != self.world.account.address.raw:
                for asset, units in (("lovelace", output.lovelace), *output.assets.items()):
                    takes[asset] = takes.get(asset, 0) + units
        return takes

    def _admitted(self, row: PaymentRow, ask: PaymentRequest) -> None:
        self.asked[row.id] = ask
        if row.state is State.AWAITING_APPROVAL:
            self.seen["asked"] += 1
            least = payments.hold(self.run.context.conn, row.id, "approval")
            self._counts(row.id, ask.app_id, ask.origin, least)
            assert any(units > ABOVE.get(asset, units) for asset, units in least.items())
            return
        self.seen["paid"] += 1
        takes = self._takes(row)
        if ask.max_total_units is not None:
            assert takes[row.outputs[0].asset] <= ask.max_total_units
        assert not any(units > ABOVE.get(asset, units) for asset, units in takes.items())
        self._counts(row.id, ask.app_id, ask.origin, takes)

    def _counts(self, payment_id: str, app: str, merchant: str, takes: dict[str, int]) -> None:
        """The payment was admitted, so every limit that applies must have had room for it."""
        assert set(takes) <= self.allowed.spendable()
        for key, most in self.allowed.binding(app, merchant, takes).items():
            assert self.allowed.least(key) + takes[key.asset] <= most, (key, takes)
        self.allowed.bought[payment_id] = Bought(payment_id, app, merchant, takes, takes)

    def _refused(self, answer: BaseException, ask: PaymentRequest, before: Mapping[Key, int]) -> None:
        assert isinstance(answer, Refused), answer
        self.seen[answer.name] += 1
        if answer.name == "limit_exceeded":
            if answer.context["limit"] == "max_total":
                assert int(str(answer.context["asked"])) > (ask.max_total_units or 0)
            else:
                self._justified(answer, ask.app_id, ask.origin, before)
        elif answer.name == "asset_not_allowed":
            assert answer.context["asset"] not in self.allowed.spendable()
        else:
            assert answer.name in OF_THE_WALLET, answer

    def _justified(self, refused: Refused, app: str, merchant: str, before: Mapping[Key, int]) -> None:
        """The named limit exists and leaves what the refusal says, too little; no other limit leaves less."""
        told = refused.context
        at = Key(
            app if "app" in told else "",
            merchant if "merchant" in told else "",
            str(told["asset"]),
            str(told["limit"]),
        )
        assert told.get("app", NAMES[app]) == NAMES[app]
        most, left, asked = self.allowed.limits[at], int(str(told["left"])), int(str(told["asked"]))
        assert max(most - self.allowed.most(at), 0) <= left <= max(most - before[at], 0), (at, told)
        assert asked > left
        assert self.allowed.most(at) + asked > most, (at, told)
        for key, units in self.allowed.binding(app, merchant, [at.asset]).items():
            assert left <= max(units - before[key], 0), (at, key, told)

    def _as_quoted(self, told: PaymentQuote | Refused, answer: object) -> None:
        """The payment does what the quote just before it said."""
        if isinstance(told, Refused):
            assert isinstance(answer, Refused), (told, answer)
            assert answer.name == told.code, (told, answer)
        elif told.refusal is not None:
            assert isinstance(answer, Refused), (told, answer)
            assert answer.name == told.refusal.name, (told.refusal, answer)
        else:
            assert isinstance(answer, tuple), (told, answer)
            row = answer[0]
            assert (row.state is State.AWAITING_APPROVAL) == bool(told.reasons)
            assert told.reasons or self._takes(self.run.context.payment(row.id)) == told.plan.spend


OF_THE_WALLET = {"not_enough_funds", "funds_pending", "utxos_too_small/inputs", "invoice_invalid/below_min_ada"}
NOT_CARRIED_OUT = {
    "limit_exceeded",
    "asset_not_allowed",
    "approved_amount_exceeded",
    "approval_denied/timeout",
    *OF_THE_WALLET,
}
ABOVE = {"lovelace": 5 * ADA, GOLD: 250}


def from_file(merchants: list[str]) -> dict[Key, int]:
    """The limits of the config file."""
    return {
        Key("", "", "lovelace", "per_payment"): 20 * ADA,
        Key("", "", "lovelace", "per_day"): 60 * ADA,
        Key("", "", "lovelace", "per_hour"): 40 * ADA,
        Key("", "", GOLD, "per_payment"): 300,
        Key("", "", GOLD, "per_day"): 900,
        Key("", merchants[0], "lovelace", "per_day"): 20 * ADA,
    }


@contextmanager
def mall(folder: Path) -> Iterator[World]:
    """Two merchants, a clock that moves, and a wallet with UTxOs of all sorts."""
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms, merchants=2) as devnet:
        world = World(devnet, folder)
        world.clock = clock
        origins = list(devnet.devnet.merchants)
        limits = (
            limits_of(key.asset, {key.window: units}, Scope(key.app, key.merchant))
            for key, units in from_file(origins).items()
        )
        world.terms = replace(
            world.terms,
            merchants={o: MerchantConfig(f"m{n}", o, "demo", None, "confirmed", 5) for n, o in enumerate(origins)},
            limits=tuple(limit for (limit,) in limits),
            approval_required_above=ABOVE,
            unconfirmed_ancestors_max=8,
        )
        for _ in range(4):
            world.fund(*[60 * ADA] * 4, assets={GOLD: 5_000, LEAD: 5_000, "cc" * 28 + "00": 7})
            world.fund(60 * ADA, 60 * ADA)
        with closing(world.http):
            yield world


def add_apps(unit: Unit) -> None:
    for number, name in enumerate(APPS[1:], 1):
        apps.add_with_token(unit, name, NAMES[name], str(number) * 64, ["pay", "read"], 1)
    apps.add_with_token(unit, "app_somebody", "somebody", "9" * 64, ["approve"], 1)


async def live(folder: Path, seed: int, steps: int) -> Counter[str]:
    """Run a daemon twice, one after the other; returns how often each outcome was seen."""
    random, seen, asked = Random(seed), Counter[str](), dict[str, PaymentRequest]()
    with mall(folder) as world:
        allowed = Allowed(from_file(list(world.terms.merchants)))
        for life in range(2):
            async with world.run() as run:
                await run.run_pass()
                if not life:
                    await run.context.write("apps", add_apps)
                day = Day(world, run, allowed, random, seen, life * 100_000, asked)
                day.take_stock()
                doing = [day.pay] * 9 + [day.run_pass] * 3 + [day.pass_time] * 2 + [day.set_a_limit] * 3
                doing += [day.decide] * 3 + [day.resolve, day.send, day.roll_back, day.lose] + [day.come_again] * 4
                for _ in range(steps // 2):
                    await random.choice(doing)()
                assert is_sound(run)
    return seen


@pytest.mark.parametrize("seed", range(2))
async def test_random_payments_are_admitted_and_refused_as_the_documented_limits_say(
    tmp_path: Path, seed: int
) -> None:
    seen = await live(tmp_path, seed, 100)
    assert min(seen["paid"], seen["limit_exceeded"], seen["asked"]) > 0


async def some_lives(folder: Path) -> None:
    for seed in range(10):
        (folder / str(seed)).mkdir()
        await live(folder / str(seed), seed, 100)


async def test_the_model_notices_when_merchant_limits_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limit_counters, "scopes_of", lambda app, _merchant: (Scope(app), Scope()))
    with pytest.raises(AssertionError):
        await some_lives(tmp_path)


async def test_the_model_notices_when_ended_payments_still_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(executor._WRITERS, SetHold, lambda *_: None)
    with pytest.raises(AssertionError):
        await some_lives(tmp_path)
