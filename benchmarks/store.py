"""What a ledger's history costs: admission, what the API reads, an export and a verification, by payments in it.

All ledgers are measured in turn, one round after the other, so that what else the machine does befalls them alike.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from benchmarks import ledgers
from benchmarks.measure import Spread
from benchmarks.results import Bound, Cell, Options, Part, Plot, Table
from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.ports import SystemClock
from payagent.agent.base.prepaid import Buyer
from payagent.agent.base.requests import AdmittedPayment, Ids, PaymentIntent
from payagent.agent.commits import delivery_transitions as delivery_steps
from payagent.agent.commits import payment_transitions as steps
from payagent.agent.commits.utxo_sync import sync
from payagent.agent.context import AgentContext
from payagent.agent.pay.admission import Admission
from payagent.api.models.ledger import Balances
from payagent.api.models.payments import Payment
from payagent.api.models.wallet import Wallet
from payagent.audit.export import export
from payagent.audit.finding import AuditFinding, Progress
from payagent.audit.signed_bytes import Owner
from payagent.audit.statement import statement
from payagent.audit.verify import verify
from payagent.chain.provider import BlockSeen, ChainUtxo, SubmitAnswer, SubmitKind
from payagent.chain.quorum_rules import Listing
from payagent.core.address import encode_address
from payagent.core.aggregate import TxSeen
from payagent.core.invoice import Invoice, Output
from payagent.core.merchant_rules import MerchantRules
from payagent.core.money import LOVELACE
from payagent.core.network import NETWORKS, SlotClock
from payagent.core.policy import Scope, limits_of
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Unit
from payagent.store.db.writer import Writer
from payagent.store.rows import apps, journal, payments
from payagent.store.rows import attempts_and_utxos as queries
from payagent.store.rows.approvals import count_awaiting
from payagent.store.rows.journal import EVERYTHING
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.transaction import TxPlan
from payagent.wallet.utxo_index import UtxoIndex
from sim.signing import sign

NETWORK = NETWORKS["devnet"]
WORDS = "abandon " * 23 + "art"
"""The wallet of scripts/make_ledger."""

ACCOUNT = derive(seed_from_words(WORDS), NETWORK)

ORIGIN, APP = "https://merchant.example", "app_bot"
PAID = (
    Output("pay_to", encode_address(bytes([0x60]) + bytes(28)), LOVELACE, 2_000_000),
    Output("split", encode_address(bytes([0x60]) + bytes(27) + b"\x01"), LOVELACE, 1_000_000),
)
UTXO_LOVELACE = 5_000_000
MOST = 10**15
WINDOWS = dict.fromkeys(("per_payment", "per_hour", "per_day", "per_week", "per_month", "total"), MOST)
RULES = MerchantRules(
    first_use=True, price_rise_percent_max=25, stop_after_unserved=3, payments_in_flight_max=1_000_000
)
ADMISSION_RATIO_MAX = 1.5
PAGE = 50


Lines = dict[str, list[tuple[float, float]]]


class Payer:
    """Admits, signs and follows payments by the agent's own jobs, on a writer of its own. The chain is made up."""

    def __init__(
        self, place: Path | tuple[Writer, Readers], utxos: int, batch_target: int | None = None, account: int = 0
    ) -> None:
        """The account has so many coins of which each pays one payment, and no other. What is bought are single
        calls, or batches of so many. `place`: a file, or an open ledger."""
        self._batch_target, self._number = batch_target, account
        self._account = derive(seed_from_words(WORDS), NETWORK, account)
        self.writer, self.readers = (Writer(place), Readers(place)) if isinstance(place, Path) else place
        self.now_ms = SystemClock().now_ms()
        began_s = self.now_ms // 1000 - 1_000_000
        tip = BlockSeen(50_000, 1_000_000, "ab" * 32, self.now_ms // 1000)
        self.chain = ChainView(NETWORK, SlotClock(0, began_s), tip, problem=None, is_compared=True)
        wallet, one = limits_of(LOVELACE, WINDOWS), limits_of(LOVELACE, WINDOWS, Scope(APP, ORIGIN))
        self.terms = AgentConfig(
            network=NETWORK,
            own=self._account.address,
            merchants={ORIGIN: MerchantConfig("t", ORIGIN, "bench", None, "confirmed", 5, rules=RULES)},
            limits=(*wallet, *one),
            decimals={},
            confirm_depth=3,
            void_depth=15,
            settle_depth=2160,
            min_window_s=120,
            account=account,
        )
        self.utxos = UtxoIndex()
        self._admission = Admission.by(self.terms, self.utxos, self.chain)
        self.do(lambda unit: self._begin(unit, utxos))

    def do(self, job: Callable[[Unit], Any]) -> Any:
        """Run a job in a commit of its own; what it returned."""
        return self.writer.submit("bench", job, self._number).result()

    def _begin(self, unit: Unit, utxos: int) -> None:
        if not unit.conn.execute("SELECT 1 FROM apps").fetchone():
            apps.add_with_token(unit, APP, "bot", "0" * 64, ("pay", "read"), 1)
        own, first = self._account.address.text, self._number << 32
        ids = [f"{first + n:064x}" for n in range(utxos)]
        listed = [ChainUtxo(one, 0, own, UTXO_LOVELACE, {}, None, False, False) for one in ids]
        known = [
            row for row in queries.utxos(unit.conn) if row.state == "available" and row.account == self._number
        ]
        there = [
            ChainUtxo(c.tx_id, c.output_index, own, c.lovelace, dict(c.assets), None, False, False) for c in known
        ]
        listing = Listing((*there, *listed), frozenset())
        sync(unit, listing, self.utxos, self.now_ms, account=self._number)

    def admit(self, number: int) -> TxPlan:
        """The commit that admits a payment."""
        (plan,) = self.admit_at_once((number,))
        return plan

    def admit_at_once(self, numbers: Iterable[int]) -> list[TxPlan]:
        """The commits that admit payments which wait at the same time."""
        purchases = [self._purchase(number) for number in numbers]
        waiting = [self.writer.submit("bench", self._admitting(one), self._number) for one in purchases]
        plans = []
        for admitted in (one.result() for one in waiting):
            if admitted.plan is None:
                raise RuntimeError(f"a payment was not admitted: {admitted}")
            plans.append(admitted.plan)
        return plans

    def _admitting(self, purchase: PaymentIntent) -> Callable[[Unit], AdmittedPayment]:
        return lambda unit: self._admission.admit(unit, purchase, self.now_ms)

    def record(self, number: int, plan: TxPlan, cbor: bytes) -> None:
        """The commit that makes its signed bytes durable."""
        own = self._account.address.raw
        self.do(lambda unit: steps.record_attempt(unit, payment_id(number), plan, cbor, own, self.now_ms))

    def follow(self, number: int, plan: TxPlan) -> None:
        """The commits of all that happens to it then, until it is settled."""
        payment, tx_id, now_ms = payment_id(number), plan.tx_id, self.now_ms
        told, rules = SubmitAnswer(SubmitKind.ACCEPTED, "", None), self.terms.rules
        seen = TxSeen(tx_id, "cd" * 32, 50_000, 1_000_000)
        for job in (
            lambda unit: steps.record_submit(unit, payment, tx_id, "bench", now_ms),
            lambda unit: steps.record_answer(unit, payment, tx_id, told, "bench", now_ms),
            lambda unit: steps.record_seen(unit, payment, seen, self.utxos, "bench", now_ms),
            lambda unit: steps.record_confirmed(unit, payment, 3, rules, now_ms, now_ms),
            lambda unit: delivery_steps.record_delivery(unit, payment, 200, rules, now_ms, now_ms),
            lambda unit: steps.record_settled(unit, payment, 2160, self.utxos, now_ms),
        ):
            self.do(job)

    def close(self) -> None:
        self.writer.close()

    def _purchase(self, number: int) -> PaymentIntent:
        invoice = Invoice(
            *("t-backend", ORIGIN, f"inv_bench_{number}", NETWORK.name, PAID),
            expires_at_ms=self.now_ms + 900_000,
            batch_target=self._batch_target,
        )
        return PaymentIntent(
            ids=Ids(f"int_bench_{number}", payment_id(number), f"req_bench_{number}"),
            app_id=APP,
            key=f"key:bench-{number}",
            derived=False,
            fingerprint=f"{number:064x}",
            request=f"POST /chat {number:064x}",
            invoice=invoice,
            offers=(invoice,),
            response="{}",
            received_at_ms=self.now_ms,
            heard_at_ms=self.now_ms + 1,  # after the last batch was served
            max_total_units=None,
            min_window_s=120,
            buyer=Buyer("bench", self._account.address.text),
        )


def payment_id(number: int) -> str:
    return f"pay_bench_{number}"


def measure(options: Options) -> Part:
    counts = (0, *options.pick((1_000, 5_000), (1_000, 10_000, 100_000, 1_000_000)))
    rounds = options.pick(40, 400)
    with ledgers.folder() as folder, ExitStack() as stack:
        payers = {}
        for count in counts:
            path = ledgers.copied(ledgers.settled(count), folder)
            payers[count] = Payer(path, rounds + 10)
            stack.callback(payers[count].close)
        admitted = admissions(payers, rounds)
        read = {count: reads(payer, count, rounds) for count, payer in payers.items()}
        booked = {count: books(folder / ledgers.settled(count).name) for count in counts if count}
    return as_part(admitted, read, booked)


def admissions(payers: dict[int, Payer], rounds: int) -> dict[int, dict[str, Spread]]:
    """By payments in the ledger: milliseconds of the commit that admits, of the one that records, of both."""
    taken: dict[int, list[tuple[float, float]]] = {count: [] for count in payers}
    for number in range(rounds + 5):
        for count, payer in payers.items():
            began = time.perf_counter()
            plan = payer.admit(number)
            admitted = time.perf_counter()
            cbor = sign(plan, ACCOUNT.signer)
            signed = time.perf_counter()
            payer.record(number, plan, cbor)
            if number >= 5:  # the first ones prepare statements
                taken[count].append((admitted - began, time.perf_counter() - signed))
    return {
        count: {
            "admit": Spread.of([admit * 1e3 for admit, _ in pairs]),
            "record": Spread.of([record * 1e3 for _, record in pairs]),
            "both": Spread.of([(admit + record) * 1e3 for admit, record in pairs]),
        }
        for count, pairs in taken.items()
    }


def reads(payer: Payer, count: int, rounds: int) -> dict[str, Spread]:
    """Milliseconds of what the API reads and makes JSON of, by what it is."""
    conn, terms, chain, now_ms = payer.readers.conn, payer.terms, payer.chain, payer.now_ms
    context = cast(
        AgentContext,
        SimpleNamespace(config=terms, is_ready=lambda _row: False, wallet_address=lambda _row: terms.own.text),
    )

    def page(**only: Any) -> Callable[[], object]:
        every = {"app_id": None, "state": None, "origin": None, "since_ms": None, "before_seq": None} | only

        def read() -> object:
            count_awaiting(conn, None)
            rows = payments.payments_page(conn, limit=PAGE, **every)
            return [Payment.of(context, row) for row in rows]

        return read

    asked: dict[str, Callable[[], object]] = {
        "wallet": lambda: Wallet.of(
            terms, chain, now_ms, queries.utxos(conn), journal.balances(conn)
        ).model_dump(),
        "balance": lambda: Balances.of(journal.balances(conn)),
        "first page": page(),
        "a page in the middle": page(before_seq=count // 2 + 1),
        "page of a state": page(state="settled"),
        "page of a merchant": page(origin=ORIGIN),
        "page of a merchant that has none": page(origin="https://nobody.example"),
        "page of the last hour": page(since_ms=now_ms - 3_600_000),
        "page since tomorrow": page(since_ms=now_ms + 86_400_000),
    }
    return {name: Spread.of(_times_ms(read, rounds)) for name, read in asked.items()}


def _times_ms(read: Callable[[], object], rounds: int, most_s: float = 3) -> list[float]:
    read()
    taken: list[float] = []
    end = time.perf_counter() + most_s
    while len(taken) < rounds and (not taken or time.perf_counter() < end):
        began = time.perf_counter()
        read()
        taken.append((time.perf_counter() - began) * 1e3)
    return taken


def books(path: Path) -> tuple[float, float]:
    """Lines of an export, and rows of a verification, per second."""
    readers = Readers(path)
    began = time.perf_counter()
    with readers.snapshot() as conn:
        lines = sum(piece.count("\n") for piece in export(statement(conn, EVERYTHING, NETWORK.name), "csv"))
    exported = time.perf_counter()
    rows: dict[str, int] = {}
    with readers.snapshot() as conn:
        for told in verify(conn, Owner(ACCOUNT.address, NETWORK)):
            if isinstance(told, Progress):
                rows[told.table] = told.rows
            elif isinstance(told, AuditFinding):
                raise RuntimeError(f"the made ledger is not whole: {told}")
    return lines / (exported - began), sum(rows.values()) / (time.perf_counter() - exported)


def as_part(
    admitted: dict[int, dict[str, Spread]],
    read: dict[int, dict[str, Spread]],
    booked: dict[int, tuple[float, float]],
) -> Part:
    empty, most = admitted[min(admitted)]["both"], admitted[max(admitted)]["both"]
    steps_of = ("payments", "step", "median ms", "10 %", "90 %", "99 %", "times an empty ledger")
    rows: list[tuple[Cell, ...]] = [
        (count, name, s.median, s.p10, s.p90, s.p99, round(s.median / admitted[min(admitted)][name].median, 2))
        for count, spreads in admitted.items()
        for name, s in spreads.items()
    ]
    names = list(read[min(read)])
    lines: Lines = {
        "admission, both commits": [(count, s["both"].median) for count, s in admitted.items() if count]
    }
    lines |= {name: [(count, s[name].median) for count, s in read.items() if count] for name in names}
    return Part(
        "store",
        "A ledger's history",
        how="Payments are admitted and recorded by the agent's jobs on the real writer, `synchronous=FULL`, one "
        "by one, on copies of ledgers of so many settled payments, in turn. Pages have "
        f"{PAGE} payments. Then the whole of each ledger is exported as CSV and verified.",
        bounds=[
            Bound(
                f"admission at {max(admitted):,} payments, times an empty ledger",
                round(most.median / empty.median, 2),
                ADMISSION_RATIO_MAX,
                "times",
            )
        ],
        tables=[
            Table("Admission by payments in the ledger", steps_of, rows),
            Table(
                "Reads, median ms",
                ("read", *(f"{count:,}" for count in read)),
                [(name, *(spreads[name].median for spreads in read.values())) for name in names],
            ),
            Table(
                "The whole ledger",
                ("payments", "export, lines a second", "verify, rows a second"),
                [
                    (count, round(lines_per_s), round(rows_per_s))
                    for count, (lines_per_s, rows_per_s) in booked.items()
                ],
            ),
        ],
        plots=[Plot("store", "By payments in the ledger", "payments", "ms at the median", lines)],
        left_out="What the provider, the signer's process and HTTP take. Reads are of pages that the system has "
        "in memory, as far as it has room.",
    )
