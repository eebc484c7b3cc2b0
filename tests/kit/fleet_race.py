"""`python -m kit.fleet_race URL SCOPE NUMBER UTXOS LIMIT_UNITS FIRST END STEP`: a daemon that admits in a race.

The real admission, in commits of up to 16, with a limit of the wallet, the app or the merchant (SCOPE). It prints
what became of the purchases FIRST, FIRST + STEP and so on until END. A commit that did not get the gate is asked
for again, as a client would.
"""

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from kit.agent import DEVNET, WORDS
from kit.fleet import Record
from payagent.agent.base.chain_view import ChainView
from payagent.agent.base.config import AgentConfig, MerchantConfig
from payagent.agent.base.free_utxos import utxo_of
from payagent.agent.base.ports import SystemClock
from payagent.agent.base.prepaid import Buyer
from payagent.agent.base.requests import Ids, PaymentIntent
from payagent.agent.commits.utxo_sync import sync
from payagent.agent.pay.admission import Admission, AdmittedPayment
from payagent.chain.provider import BlockSeen, ChainUtxo
from payagent.chain.quorum_rules import Listing
from payagent.core.invoice import Invoice, Output
from payagent.core.merchant_rules import MerchantRules
from payagent.core.money import LOVELACE
from payagent.core.network import SlotClock
from payagent.core.policy import ANY, WALLET, Scope, limits_of
from payagent.core.problems import Refused
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.unit import Unit
from payagent.store.rows import apps, attempts_and_utxos, fleet
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.utxo_index import UtxoIndex

PAYEE = derive(seed_from_words(WORDS), DEVNET, 1_000).address
ORIGIN, APP = "https://merchant.example", "app_race"
PAYS, UTXO_LOVELACE, BATCH, FUNDED_AT_ONCE = 3_000_000, 5_000_000, 16, 100
T = TypeVar("T")
SCOPES = {"wallet": WALLET, "app": Scope(APP), "merchant": Scope(ANY, ORIGIN)}
NO_LIMIT_UNITS = 10**15
RULES = MerchantRules(
    first_use=True, price_rise_percent_max=25, stop_after_unserved=3, payments_in_flight_max=1_000_000
)


class Racer:
    """A daemon that holds the account of its number. The chain is made up."""

    def __init__(self, url: str, scope: str, number: int, limit_units: int) -> None:
        self._account = derive(seed_from_words(WORDS), DEVNET, number)
        self._number = number
        self._now_ms = SystemClock().now_ms()
        tip = BlockSeen(50_000, 1_000_000, "ab" * 32, self._now_ms // 1000)
        slots = SlotClock(0, self._now_ms // 1000 - 1_000_000)
        chain = ChainView(DEVNET, slots, tip, problem=None, is_compared=True)
        self._chain, self._utxos = chain, UtxoIndex()
        self._config = AgentConfig(
            network=DEVNET,
            own=self._account.address,
            merchants={ORIGIN: MerchantConfig("m", ORIGIN, "race", None, "confirmed", 5, rules=RULES)},
            limits=(
                *(() if scope == "wallet" else limits_of(LOVELACE, {"per_day": NO_LIMIT_UNITS})),
                *limits_of(LOVELACE, {"per_payment": limit_units, "per_day": limit_units}, SCOPES[scope]),
            ),
            decimals={},
            confirm_depth=3,
            void_depth=15,
            settle_depth=2160,
            min_window_s=120,
            account=number,
        )
        self._admission = Admission.by(self._config, self._utxos, chain)
        self._seat = Seat(f"racer {number}", f"host {number}", {number: Record()})
        self._committer = PostgresqlCommitter(url, seat=self._seat)

    def begin(self, utxos: int) -> None:
        self._until_through(lambda: self._do(self._take, None))
        for count in range(0, utxos, FUNDED_AT_ONCE):
            fund = partial(self._fund, utxos=count + FUNDED_AT_ONCE)
            self._until_through(partial(self._do, fund, self._number))

    def _until_through(self, work: Callable[[], T]) -> T:
        while True:
            try:
                return work()
            except Refused as refused:
                if refused.code not in ("store_failed", "lease_lost"):
                    raise
                self._begin_again()

    def _begin_again(self) -> None:
        with suppress(Refused):
            self._do(self._take, None)
            free = attempts_and_utxos.free_utxos(self._committer.conn, self._number)
            self._utxos = UtxoIndex(utxo_of(row) for row in free)
            self._admission = Admission.by(self._config, self._utxos, self._chain)

    def _do(self, job: Callable[[Unit], object], account: int | None) -> None:
        one = self._committer.job("begin", job, account)
        self._committer.commit([one])
        one.outcome()

    def _take(self, unit: Unit) -> None:
        if not unit.conn.execute("SELECT 1 FROM apps").fetchone():
            apps.add_with_token(unit, APP, "race", "0" * 64, ("pay", "read"), 1)
        fleet.add_account(unit, self._number, self._account.address.text)
        self._seat.hold(unit, fleet.take_accounts(unit, self._seat.holder, [self._number], self._now_ms))

    def _fund(self, unit: Unit, utxos: int) -> None:
        own = self._account.address.text
        listed = [
            ChainUtxo(f"{self._number:02x}{n:062x}", 0, own, UTXO_LOVELACE, {}, None, False, False)
            for n in range(utxos)
        ]
        sync(unit, Listing(tuple(listed), frozenset()), self._utxos, self._now_ms, account=self._number)

    def race(self, purchases: range) -> Counter[str]:
        found: Counter[str] = Counter()
        for first in range(0, len(purchases), BATCH):
            found.update(self._until_through(partial(self._ask, purchases[first : first + BATCH])))
        return found

    def _ask(self, purchases: range) -> list[str]:
        jobs = [self._committer.job("admit", self._admitting(number), self._number) for number in purchases]
        self._committer.commit(jobs)
        return ["not new" if job.outcome().plan is None else "admitted" for job in jobs]

    def _admitting(self, number: int) -> Callable[[Unit], AdmittedPayment]:
        purchase = self._purchase(number)
        return lambda unit: self._admission.admit(unit, purchase, self._now_ms)

    def _purchase(self, number: int) -> PaymentIntent:
        invoice = Invoice(
            *("t-backend", ORIGIN, f"inv_{number}", DEVNET.name),
            (Output("pay_to", PAYEE, LOVELACE, PAYS),),
            expires_at_ms=self._now_ms + 900_000,
            batch_target=None,
        )
        own = f"{number}_{self._number}"
        return PaymentIntent(
            ids=Ids(f"int_{own}", f"pay_{own}", f"req_{own}"),
            app_id=APP,
            key=f"key:{number}",
            derived=False,
            fingerprint=f"{number:064x}",
            request=f"POST /chat {number:064x}",
            invoice=invoice,
            offers=(invoice,),
            response="{}",
            received_at_ms=self._now_ms,
            heard_at_ms=self._now_ms + 1,
            max_total_units=None,
            min_window_s=120,
            buyer=Buyer("race", self._account.address.text),
        )


def main(url: str, scope: str, number: int, utxos: int, limit_units: int, first: int, end: int, step: int) -> None:
    racer = Racer(url, scope, number, limit_units)
    racer.begin(utxos)
    print("ready", flush=True)
    sys.stdin.readline()
    for name, count in racer.race(range(first, end, step)).items():
        print(name, count)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
