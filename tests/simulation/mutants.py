"""Seeded bugs that the simulator must find. Each is a mistake that such a payer has made, or could make.

They are switched on only here, by replacing a function; nothing in the package knows of them.
`python tests/simulation/mutants.py NAME 0..2000` prints the first seed that finds one, and what it violates.
Where SQL itself would refuse the mistake, its guards are taken off, so that it is the simulator that finds it.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import structlog
from kit import holds

from payagent.agent import context
from payagent.agent.agent import Agent
from payagent.agent.base import requests
from payagent.agent.base.requests import PaymentRequest
from payagent.agent.chain_sync import follow_up, recovery
from payagent.agent.chain_sync import rolled_back_deposits as rolled_back
from payagent.agent.chain_sync.confirmations import Confirmations
from payagent.agent.chain_sync.follow_up import FollowUp
from payagent.agent.commits import approvals as approval_rules
from payagent.agent.commits import delivery_transitions as delivery_steps
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.commits import replacement
from payagent.agent.commits import rules as rules
from payagent.agent.commits import tx_planner as planner
from payagent.agent.pay import admission
from payagent.agent.payments import lifecycle as lifecycle
from payagent.agent.payments import sign as signing
from payagent.agent.payments.lifecycle import PaymentLifecycle
from payagent.agent.payments.sign import PaymentSigner
from payagent.chain.provider import Found, SubmitKind
from payagent.core import ledger
from payagent.core.aggregate import OwnUtxo, TxSeen
from payagent.core.changes import SetColumn
from payagent.core.money import LOVELACE
from payagent.core.payment import apply as columns
from payagent.core.payment.machine import PrepaidEffect, State
from payagent.core.policy import Limit
from payagent.core.problems import Refused
from payagent.store import executor
from payagent.store.db import committer, schema
from payagent.store.db import lease as leases
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows import intents, limit_counters, payments, prepaid
from payagent.store.rows import writes as records
from payagent.wallet import transaction
from payagent.wallet import tx_plan as plans
from sim.fixtures import API_KEY
from sim.stage import SimStage
from sim.virtual_loop import StuckError, VirtualLoop

Mutant = Callable[[ExitStack], None]
MUTANTS: dict[str, Mutant] = {}
ROUNDS_MAX = 200_000
"""A run of the program without a bug takes about ten thousand."""
NOT_COUNTED = ("I10: verify", "BUG")


def mutant(name: str) -> Callable[[Mutant], Mutant]:
    def register(function: Mutant) -> Mutant:
        MUTANTS[name] = function
        return function

    return register


@contextmanager
def switched_on(name: str) -> Iterator[None]:
    """The bug is in the program."""
    with ExitStack() as stack:
        put(stack, VirtualLoop, "pass_time", _bounded(VirtualLoop.pass_time))
        MUTANTS[name](stack)
        yield


def _bounded(
    pass_time: Callable[[VirtualLoop, float | None], None],
) -> Callable[[VirtualLoop, float | None], None]:
    """A bug may go round and round without an end: that is no rest either."""

    def bounded(loop: VirtualLoop, until_s: float | None) -> None:
        if loop.rounds > ROUNDS_MAX:
            raise StuckError("it does not come to rest")
        pass_time(loop, until_s)

    return bounded


def put(stack: ExitStack, where: object, name: str, what: object) -> None:
    require_fit(name, getattr(where, name), what)
    stack.enter_context(patch.object(where, name, what))


def require_fit(name: str, real: object, what: object) -> None:
    """AssertionError: `what` replaces a function and cannot be called as that is, with or without its defaults."""
    if not (inspect.isfunction(real) and callable(what)):
        return
    taken = inspect.signature(real).parameters.values()
    calls = [[one for one in taken if every or one.default is one.empty] for every in (True, False)]
    if not any(_takes(what, call) for call in calls):
        raise AssertionError(f"{name} takes {', '.join(one.name for one in taken)}")


def _takes(what: Callable[..., Any], call: list[inspect.Parameter]) -> bool:
    positional = [one.name for one in call if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    keywords = {one.name: None for one in call if one.kind is one.KEYWORD_ONLY}
    try:
        inspect.signature(what).bind(*positional, **keywords)
    except TypeError:
        return False
    return True


def put_in(stack: ExitStack, table: dict[Any, Any], key: Any, what: Any) -> None:
    """Put another value in a table, until the stack is left."""
    stack.callback(table.__setitem__, key, table[key])
    table[key] = what


def without_guards(stack: ExitStack) -> None:
    """A database that refuses nothing of what the rules forbid."""
    live = "WHERE state NOT IN ('rejected', 'denied')"
    freed = "AND code IS NOT 'deposit_rolled_back'"
    inputs = "CHECK (instr(' ' || inputs || ' ', ' ' || nonce_utxo || ' ') > 0)"
    leave_out(stack, inputs, "CHECK (1)")
    for rule in (
        "FOREIGN KEY (payment_id, nonce_utxo) REFERENCES payments(id, nonce_utxo),",
        f"CREATE UNIQUE INDEX payments_one_per_invoice ON payments(invoice_seq) {live};",
        f"CREATE UNIQUE INDEX payments_one_per_nonce_utxo ON payments(nonce_utxo)\n  {live} {freed};",
    ):
        leave_out(stack, rule)
    without_guards_of(stack, "payments_", "attempts_", "holds_", "intents_")


def leave_out(stack: ExitStack, rule: str, instead: str = "") -> None:
    """A ledger is built without this rule."""
    first = schema.MIGRATIONS["m001_schema"]
    assert rule in first.sqlite, rule
    without = replace(first, sqlite=first.sqlite.replace(rule, instead))
    put_in(stack, schema.MIGRATIONS, "m001_schema", without)


def without_guards_of(stack: ExitStack, *names: str) -> None:
    """A ledger is built without the guards whose names begin so, and is not refused for it."""
    kept = tuple(one for one in schema.TRIGGERS if not one.name.startswith(names))
    put(stack, schema, "TRIGGERS", kept)


# --- when bytes leave --------------------------------------------------------------------------------------------


@mutant("recorded after it was sent")
def _record_after_submit(stack: ExitStack) -> None:
    real = PaymentSigner.sign

    async def sign(self: PaymentSigner, payment_id: str, plan: Any, signed: Any = None) -> None:
        raw = await self.sign_and_check(payment_id, plan)
        if not self._context.payment(payment_id).invoice.merchant_submits:
            await self._context.all_providers[0].submit(raw, plan.tx_id)
        await real(self, payment_id, plan, signed)

    put(stack, PaymentSigner, "sign", sign)


@mutant("answered before the commit")
def _answered_before_commit(stack: ExitStack) -> None:
    """Headers with the signed bytes go out while they are still being written."""

    async def carry_out(self: PaymentLifecycle, admitted: Any) -> Any:
        if admitted.plan is None:
            return await real(self, admitted)
        raw = await self._signing.sign_and_check(admitted.payment_id, admitted.plan)
        now_ms = self._context.ports.clock.now_ms()

        async def write() -> None:
            await asyncio.sleep(5)
            await self._context.write(
                "sign",
                lambda unit: steps.record_attempt(
                    unit, admitted.payment_id, admitted.plan, raw, self._context.config.own.raw, now_ms
                ),
            )

        task = asyncio.create_task(write())
        self._submitter._tasks.add(task)
        row = self._context.payment(admitted.payment_id)
        attempt = replace(row.attempt, tx_id=admitted.plan.tx_id, cbor=raw)
        return replace(row, attempt=attempt, state=State.IN_FLIGHT), True

    real = PaymentLifecycle.carry_out
    put(stack, PaymentLifecycle, "carry_out", carry_out)


@mutant("no fsync")
def _no_fsync(stack: ExitStack) -> None:
    real = committer.open_database

    def open_database(path: Path) -> Any:
        conn = real(path)
        conn.execute("PRAGMA synchronous = OFF")
        return conn

    put(stack, committer, "open_database", open_database)


# --- when a payment is given up ----------------------------------------------------------------------------------


def given_up(unit: Any, payment_id: str, now_ms: int) -> None:
    """Forget a payment as failed, so that the next request pays again."""
    hold = payments.hold(unit.conn, payment_id)
    unit.conn.execute("UPDATE payments SET state = 'rejected' WHERE id = ?", (payment_id,))
    records.note(unit, payment_id, "reject", State.REJECTED, now_ms)
    holds.release_hold(unit, payment_id, now_ms)
    records.write_entry(unit, ledger.release(hold), now_ms, payment_id=payment_id)


@mutant("built anew on BadInputs")
def _rebuild_on_bad_inputs(stack: ExitStack) -> None:
    without_guards(stack)
    real = steps.record_answer

    def record_answer(unit: Any, payment_id: str, tx_id: str, answer: Any, provider: str, now_ms: int) -> None:
        real(unit, payment_id, tx_id, answer, provider, now_ms)
        row = steps.row_of(unit, payment_id)
        if answer.kind in (SubmitKind.SPENT_ALL, SubmitKind.SPENT_SOME) and row.state is State.IN_FLIGHT:
            given_up(unit, payment_id, now_ms)

    put(stack, steps, "record_answer", record_answer)


def _given_up_after(stack: ExitStack, blocks: int) -> None:
    """Once the tip is so many blocks (of 20 s) past the time limit, the payment counts as failed."""
    without_guards(stack)
    real = FollowUp.carry_on

    async def carry_on(self: FollowUp) -> None:
        context = self._context
        tip, now_ms = context.chain.tip, context.ports.clock.now_ms()
        for row in payments.payments_in(context.conn, (State.IN_FLIGHT,)):
            if tip is not None and tip.slot >= (row.attempt.ttl_slot or 0) + 20 * blocks:
                await context.write("give_up", lambda unit, row=row: given_up(unit, row.id, now_ms))
        await real(self)

    put(stack, FollowUp, "carry_on", carry_on)


@mutant("built anew after the time limit")
def _rebuild_after_ttl(stack: ExitStack) -> None:
    _given_up_after(stack, 0)


@mutant("built anew 15 blocks after the time limit")
def _rebuild_after_ttl_and_15(stack: ExitStack) -> None:
    _given_up_after(stack, 15)
    # nothing of ours may end it before
    put(stack, replacement, "is_lost", lambda *_: False)
    put(stack, follow_up, "is_lost", lambda *_: False)


@mutant("not found is void")
def _not_found_is_void(stack: ExitStack) -> None:
    without_guards(stack)
    real = Confirmations._look_for

    async def look_for(self: Confirmations, source: Any, tip: Any, row: Any) -> None:
        await real(self, source, tip, row)
        context = self._context
        if context.payment(row.id).state is State.IN_FLIGHT and row.attempt.tx_id is not None:
            read = await source.tx(row.attempt.tx_id)
            now_ms = context.ports.clock.now_ms()
            if not isinstance(read, Found):
                await context.write("give_up", lambda unit: given_up(unit, row.id, now_ms))

    put(stack, Confirmations, "_look_for", look_for)


@mutant("a hold is released when nobody answers")
def _hold_released_on_timeout(stack: ExitStack) -> None:
    without_guards(stack)
    real = steps.record_answer

    def record_answer(unit: Any, payment_id: str, tx_id: str, answer: Any, provider: str, now_ms: int) -> None:
        real(unit, payment_id, tx_id, answer, provider, now_ms)
        if answer.kind in (SubmitKind.AMBIGUOUS, SubmitKind.OUTAGE):
            hold = payments.hold(unit.conn, payment_id)
            released = unit.conn.execute(
                "SELECT 1 FROM holds WHERE payment_id = ? AND released_at_ms IS NULL", (payment_id,)
            ).fetchone()
            if released and steps.row_of(unit, payment_id).state is State.IN_FLIGHT:
                holds.release_hold(unit, payment_id, now_ms)
                records.write_entry(unit, ledger.release(hold), now_ms, payment_id=payment_id)

    put(stack, steps, "record_answer", record_answer)


@mutant("a block once seen is never lost")
def _never_reopened(stack: ExitStack) -> None:
    """What one provider showed on a branch that was undone stays in the books."""
    put(stack, steps, "record_block_lost", lambda *_: None)


@mutant("the merchant is trusted over the chain")
def _merchant_over_chain(stack: ExitStack) -> None:
    without_guards(stack)
    real = executor._WRITERS[SetColumn]

    def set_column(unit: Any, change: SetColumn, now_ms: int) -> None:
        real(unit, change, now_ms)
        if change.value in ("expired", "refunded"):
            given_up(unit, change.payment_id, now_ms)

    put_in(stack, executor._WRITERS, SetColumn, set_column)


@mutant("what a merchant refuses is over")
def _refused_is_over(stack: ExitStack) -> None:
    without_guards(stack)
    real = delivery_steps.record_answer_to_retry

    def record(unit: Any, payment_id: str, answer: Any, http_status: int, *rest: Any) -> float | None:
        after_s = real(unit, payment_id, answer, http_status, *rest)
        row = steps.row_of(unit, payment_id)
        if row.refused and row.state is State.IN_FLIGHT:
            given_up(unit, payment_id, rest[-1])
        return after_s

    put(stack, delivery_steps, "record_answer_to_retry", record)


@mutant("what a facilitator keeps is not taken back")
def _never_taken_back(stack: ExitStack) -> None:
    real = steps.reason_to_cancel

    def reason_to_cancel(conn: Any, row: Any, slot: int) -> Any:
        return None if row.invoice.merchant_submits and row.state is State.IN_FLIGHT else real(conn, row, slot)

    put(stack, steps, "reason_to_cancel", reason_to_cancel)


@mutant("what a facilitator does not send in two minutes is given up")
def _given_up_pending(stack: ExitStack) -> None:
    without_guards(stack)
    real = FollowUp.carry_on

    async def carry_on(self: FollowUp) -> None:
        context = self._context
        now_ms = context.ports.clock.now_ms()
        for row in payments.payments_in(context.conn, (State.IN_FLIGHT,)):
            if row.invoice.merchant_submits and now_ms > row.updated_at_ms + 120_000:
                await context.write("give_up", lambda unit, row=row: given_up(unit, row.id, now_ms))
        await real(self)

    put(stack, FollowUp, "carry_on", carry_on)


# --- what is spent -----------------------------------------------------------------------------------------------


@mutant("the nonce UTxO is dropped at a replacement")
def _nonce_utxo_dropped(stack: ExitStack) -> None:
    """UTxOs are selected again, as if the first attempt were dead."""
    without_guards(stack)

    def plan(self: Any, unit: Any, row: Any, wanted: Any, ttl_slot: int) -> Any:
        made = transaction.select(
            self.utxos,
            wanted.outputs,
            change=self.own,
            ttl_slot=ttl_slot,
            network_id=self.chain.network.network_id,
            params=wanted.parameters,
        )
        unit.conn.execute("UPDATE payments SET nonce_utxo = ? WHERE id = ?", (made.nonce_utxo.ref, row.id))
        return made

    put(stack, replacement.Replacement, "_plan", plan)


@mutant("the nonce UTxO is dropped at the second replacement")
def _nonce_utxo_dropped_later(stack: ExitStack) -> None:
    """A1{u1}, A2{u1, u2}, A3{u2, u3}: each excludes the one before, and the first and the last do not."""
    kept = replacement.Replacement._plan
    _nonce_utxo_dropped(stack)
    dropped = replacement.Replacement._plan

    def plan(self: Any, unit: Any, row: Any, wanted: Any, ttl_slot: int) -> Any:
        count = sum(one.kind == "pay" for one in queries.attempts(unit.conn, row.id))
        return (kept if count < 2 else dropped)(self, unit, row, wanted, ttl_slot)

    put(stack, replacement.Replacement, "_plan", plan)


@mutant("a child is kept after its parent was replaced")
def _child_kept(stack: ExitStack) -> None:
    """The child is resubmitted for ever, although its parent can never land."""
    put(stack, queries, "rival_of", lambda *_: None)
    put(stack, OwnUtxo, "is_never_made", property(lambda _: False))


@mutant("a lost answer is used twice")
def _used_twice(stack: ExitStack) -> None:
    """A request repeated because its answer was lost uses the prepaid balance again."""
    rule = "CREATE UNIQUE INDEX prepaid_moves_once ON prepaid_moves(app_id, call_key) WHERE call_key IS NOT NULL;"
    leave_out(stack, rule)
    without_guards_of(stack, "prepaid_moves_")
    put(stack, prepaid, "knows_call", lambda *_: False)


@mutant("a balance outlives the block that it was bought in")
def _not_taken_back(stack: ExitStack) -> None:
    put_in(stack, columns._CELLS, PrepaidEffect.TAKE_BACK, lambda *_: ())


@mutant("the intent's key is ignored")
def _key_ignored(stack: ExitStack) -> None:
    real = PaymentRequest.key
    count = iter(range(1_000_000))
    put(stack, PaymentRequest, "key", lambda self, invoice_id: f"{real(self, invoice_id)} {next(count)}")
    without_guards(stack)
    put(stack, payments, "payment_of_invoice", lambda *_: None)


@mutant("a key is looked up before the transaction")
def _key_outside(stack: ExitStack) -> None:
    """Who has the key is asked when a call comes, and acted upon a moment later, when others have opened it."""
    pay, admit, live = Agent.pay, admission.Admission.admit, intents.live_intent
    seen: dict[str, Any] = {}
    rule = "CREATE UNIQUE INDEX intents_live ON intents(app_id, idempotency_key) WHERE ended_at_ms IS NULL;"
    without_guards(stack)
    leave_out(stack, rule)

    async def pay_by_what_was(self: Agent, ask: PaymentRequest) -> Any:
        seen[ask.received] = live(self.context.conn, ask.app_id, ask.key(None) or "")
        await asyncio.sleep(1)
        return await pay(self, ask)

    def admit_by_what_was(self: Any, unit: Any, intent: Any, *rest: Any, **more: Any) -> Any:
        if intent.response not in seen:
            return admit(self, unit, intent, *rest, **more)
        with patch.object(intents, "live_intent", lambda *_: seen[intent.response]):
            return admit(self, unit, intent, *rest, **more)

    put(stack, Agent, "pay", pay_by_what_was)
    put(stack, admission.Admission, "admit", admit_by_what_was)


@mutant("limits are looked at before the transaction")
def _policy_outside(stack: ExitStack) -> None:
    """What was spent is summed up when a call comes, and compared a moment later, when others were admitted."""
    pay, decide = Agent.pay, rules.PaymentRules.require_within_limits
    seen: dict[str, dict[Limit, int]] = {}

    async def pay_by_what_was(self: Agent, ask: PaymentRequest) -> Any:
        clock_ms = self.context.admission.rules.clock_ms(self.context.conn, self.context.ports.clock.now_ms())
        limits = self.context.config.limits
        seen[ask.received] = limit_counters.counted_for_each(self.context.conn, limits, clock_ms)
        await asyncio.sleep(1)
        return await pay(self, ask)

    def decide_by_what_was(self: Any, conn: Any, intent: Any, *rest: Any, **named: Any) -> Any:
        spent = seen.get(intent.response)
        if spent is None:
            return decide(self, conn, intent, *rest, **named)

        def by_what_was(_conn: Any, limits: Any, _clock_ms: Any) -> dict[Limit, int]:
            return {limit: spent[limit] for limit in limits}

        with patch.object(rules.limit_counters, "counted_for_each", by_what_was):
            return decide(self, conn, intent, *rest, **named)

    put(stack, Agent, "pay", pay_by_what_was)
    put(stack, rules.PaymentRules, "require_within_limits", decide_by_what_was)


@mutant("void when its deposit is denied")
def _void_by_absence(stack: ExitStack) -> None:
    """That nobody shows the deposit is taken for proof that it never comes back."""

    async def weigh(self: Any, source: Any, tip: Any, row: Any) -> None:
        context = self._context
        late = TxSeen("", tip.hash, tip.height, 1 << 40)
        now_ms = context.ports.clock.now_ms()
        await context.write(
            "void", lambda unit: steps.record_time_over(unit, row.id, late, context.utxos, now_ms), row.id
        )

    put(stack, rolled_back.RolledBackDeposits, "_weigh", weigh)


@mutant("no bound on the fee")
def _no_fee_cap(stack: ExitStack) -> None:
    """A provider's or a bug's 22 times the fee is paid as it comes."""
    for where in (transaction, plans):
        put(stack, where, "TxParameters", partial(plans.TxParameters, min_fee_b=2_000_000))
    dear = plans.TxParameters(min_fee_b=2_000_000)
    for module in (transaction, replacement):
        put(stack, module, "MAINNET_PARAMETERS", dear)
    for function in (transaction.select, transaction.build):
        defaults = dict(function.__kwdefaults__)
        stack.callback(setattr, function, "__kwdefaults__", defaults)
        function.__kwdefaults__ = defaults | {"params": dear, "fee_cap_lovelace": 10**12}


@mutant("only ADA counts against limits")
def _tokens_without_limit(stack: ExitStack) -> None:
    real = rules.policy.concerning

    def concerning(*args: Any) -> tuple[Limit, ...]:
        return tuple(limit for limit in real(*args) if limit.asset == LOVELACE)

    put(stack, rules.policy, "concerning", concerning)


# --- what is written down ----------------------------------------------------------------------------------------


@mutant("a fee is booked as the merchant's")
def _fee_as_price(stack: ExitStack) -> None:
    """All accounts together come to the same, and what is left in the wallet too."""
    real = ledger.post

    def post(hold: Any, spent: Any, fee_lovelace: int, *rest: Any) -> Any:
        return real(hold, {**spent, LOVELACE: spent.get(LOVELACE, 0) + fee_lovelace}, 0, *rest)

    put(stack, ledger, "post", post)


@mutant("what rides along with a token is not booked")
def _riding_left_out(stack: ExitStack) -> None:
    """The token went to the merchant; the ADA that its outputs must hold is thought to be in the wallet."""
    real = ledger.post

    def post(hold: Any, spent: Any, fee_lovelace: int, *rest: Any) -> Any:
        tokens = {asset: units for asset, units in spent.items() if asset != LOVELACE}
        return real(hold, tokens or spent, fee_lovelace, *rest)

    put(stack, ledger, "post", post)


@mutant("an api key is logged")
def _key_logged(stack: ExitStack) -> None:
    real = Agent.pay

    async def pay(self: Agent, ask: PaymentRequest) -> Any:
        structlog.get_logger().warning(
            "pay", headers=self.context.config.merchants[ask.origin].own_headers("addr")
        )
        return await real(self, ask)

    put(stack, Agent, "pay", pay)


@mutant("an api key is in the ledger")
def _key_recorded(stack: ExitStack) -> None:
    noted = records.note

    def note(unit: Any, payment_id: Any, event: str, state: Any, now_ms: int, detail: Any = None) -> None:
        noted(unit, payment_id, event, state, now_ms, {**(detail or {}), "by": API_KEY})

    put(stack, records, "note", note)


# --- a ledger that is older than what was signed -----------------------------------------------------------------


@mutant("an older ledger is not noticed")
def _not_noticed(stack: ExitStack) -> None:
    put(stack, recovery, "is_forgotten", lambda *_: False)


@mutant("an older ledger signs as soon as the chain was read")
def _no_quiet_time(stack: ExitStack) -> None:
    put(stack, recovery, "QUIET_MS", 0)


@mutant("the quiet time begins by a clock that is wrong")
def _quiet_by_any_clock(stack: ExitStack) -> None:
    """It was so: a clock that is a day behind when the daemon starts ends the time early."""
    put(stack, recovery.Recovery, "_is_quiet_over", _since_noticed)


async def _since_noticed(self: recovery.Recovery, tip: Any, now_ms: int) -> bool:
    _, _, noticed_ms = recovery.onchain.last_of_wallet(self._context.conn, "ledger_behind")
    return min(now_ms, tip.time_s * 1000) >= noticed_ms + recovery.QUIET_MS


@mutant("a pause stops what is new alone")
def _pause_of_purchases(stack: ExitStack) -> None:
    """Admitted payments, replacements and cancels are still signed during a pause."""
    blind = SimpleNamespace(require_running=lambda _conn: None, standing=lambda _conn: None)
    for module in (steps, context, signing, lifecycle):
        put(stack, module, "pauses", blind)
    put(stack, planner.Planner, "cancel", _unpaused(planner.Planner.cancel))
    put(stack, replacement.Replacement, "replace", _unpaused(replacement.Replacement.replace))


def _unpaused(real: Callable[..., Any]) -> Callable[..., Any]:
    def act(*arguments: Any) -> Any:
        with patch.object(replacement.pauses, "require_running", lambda _conn: None):
            return real(*arguments)

    return act


@mutant("nobody's answer is a yes")
def _silence_is_consent(stack: ExitStack) -> None:
    def consent(
        self: approval_rules.ApprovalRules, unit: Any, payment_id: str, min_window_s: int, now_ms: int
    ) -> requests.AdmittedPayment | None:
        with suppress(Refused), patch.object(approval_rules.ApprovalRules, "over", lambda *_: []):
            return self.approve(unit, payment_id, requests.Approver("clock"), min_window_s, now_ms)
        return None

    put(stack, approval_rules.ApprovalRules, "over", _all_that_wait)
    put(stack, approval_rules.ApprovalRules, "deny_when_over", consent)


def _all_that_wait(_self: approval_rules.ApprovalRules, conn: Any, *_: int) -> list[str]:
    return [row.id for row in payments.payments_in(conn, (State.AWAITING_APPROVAL,))]


@mutant("no lock keeps a second daemon away")
def _no_lease(stack: ExitStack) -> None:
    put(stack, leases.fcntl, "flock", lambda *_: None)


@mutant("a daemon goes on when another has its ledger")
def _goes_on(stack: ExitStack) -> None:
    """Whatever epoch the ledger has is taken for our own."""
    real = committer.Committer._begin

    def begin(self: Any) -> Any:
        own, self._own = self._own, None
        try:
            return real(self)
        finally:
            self._own = own

    put(stack, committer.Committer, "_begin", begin)


def kill(name: str, seeds: range) -> tuple[int, int, str] | None:
    """(how many seeds it took, the seed, what it violates), or None when every seed lets the bug live.

    A seed that the program fails without the bug does not count.
    """
    left = seeds
    while left:
        with switched_on(name):
            found = _first_failure(left)
        if found is None:
            return None
        seed, violated = found
        if _first_failure(range(seed, seed + 1)) is None:
            return seed - seeds.start + 1, seed, violated
        left = range(seed + 1, seeds.stop)
    return None


def _first_failure(seeds: range) -> tuple[int, str] | None:
    """A seed and what it violates.

    What verify finds does not count, since a payer with the bug would verify by it; nor does a step that fails,
    since that is how the bug was put in. AssertionError: a step fails with TypeError, because the bug replaces a
    function that is called with other arguments now.
    """
    stage = SimStage()
    try:
        for seed in seeds:
            violations = stage.run(seed).violations
            misfit = [what for what in violations if what.startswith("BUG") and "TypeError" in what]
            assert not misfit, misfit[0]
            counted = [what for what in violations if not what.startswith(NOT_COUNTED)]
            if counted:
                return seed, counted[0]
    finally:
        stage.close()
    return None


if __name__ == "__main__":
    first, _, last = sys.argv[2].partition("..")
    for chosen in MUTANTS if sys.argv[1] == "all" else [sys.argv[1]]:
        print(f"{chosen}: {kill(chosen, range(int(first), int(last)))}", flush=True)
