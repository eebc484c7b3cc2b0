"""A fleet under drill: a devnet, a database, daemons, shoppers that buy at them, and the judges.

A shopper sends a request that got no payment again, with the same key, to the next daemon. It presents each proof
to the merchant and reports the delivery.
"""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from fleetforks import ForkedDaemon
from fleetrelay import Relay, relay
from kit.cli import until
from kit.daemons_of_a_fleet import ADDRESSES, TOKEN, add_app, furnish
from kit.http import NO_TLS
from kit.postgresql import Server, move_to_file

from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.address import parse_address
from payagent.core.ledger import wallet_account
from payagent.core.network import NETWORKS
from payagent.devnet.server import Devnet, DevnetThread
from payagent.store.db.opening import open_read_only
from payagent.store.db.postgresql.connection import PostgresqlConnection

ADA = 1_000_000
PRICE_UNITS = 3 * ADA
UTXOS, UTXO_LOVELACE = 12, 40 * ADA
PATIENCE_S = 180
SHOPPER_PATIENCE_S = 15
"""A shopper that asks several daemons waits so long for each: one of them may have been stopped."""

ADDRESSES_RAW = [parse_address(text, NETWORKS["devnet"]).raw for text in ADDRESSES]

CONFIG = """\
upkeep_fees_per_day = "0 ADA"
[payments]
confirm_depth = 2
settle_depth = 6
void_depth = 3
"""

_WITNESS = (
    "CREATE TABLE witness (what text, account bigint, holder text, writer text)",
    "CREATE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
    "INSERT INTO witness SELECT TG_TABLE_NAME, account, holder, current_setting('payagent.holder', TRUE) "
    "FROM accounts WHERE account = NEW.account "
    "AND holder IS DISTINCT FROM current_setting('payagent.holder', TRUE); RETURN NULL; END $$",
    *(
        f"CREATE TRIGGER witness AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION witness()"
        for table in ("payments", "attempts")
    ),
)
"""Notes who writes a payment or an attempt for an account of another daemon. payagent does not know of it."""


@dataclass
class Purchase:
    """What a shopper wants, and what it was told of it. `codes`: with which it was refused before."""

    key: str
    body: dict[str, object]
    payment_id: str | None = None
    tx_hash: str | None = None
    codes: list[str] = field(default_factory=list)
    is_served: bool = False


class DrillFleet:
    """Daemons of one wallet. What they write and where they listen is under `folder`."""

    def __init__(self, folder: Path, devnet: DevnetThread, server: Server, database: str | None) -> None:
        self.folder = folder
        self.devnet = devnet
        self.database = server.new_database() if database is None else database
        self.url = server.tcp_url(self.database)
        self.daemons: dict[str, ForkedDaemon] = {}
        self.purchases: dict[str, Purchase] = {}
        self.conn: Any = PostgresqlConnection(self.database)
        self._stack = ExitStack()
        self._http = httpx.Client(verify=NO_TLS, trust_env=False, timeout=60)
        self._keys = itertools.count()
        for statement in _WITNESS:
            self.conn.execute(statement)
        add_app(self.url, folder)
        self.sell(price=str(PRICE_UNITS), splits=[])
        for address in ADDRESSES:
            for _ in range(UTXOS):
                self.control("faucet", address=address, lovelace=str(UTXO_LOVELACE))
        self.control("blocks", count=1)

    def reconnect(self) -> None:
        """The judges' own connection, after a restart of the server."""
        self.conn.close()
        self.conn.connect()

    def close(self) -> None:
        self._stack.close()
        for one in self.daemons.values():
            one.end()
        self.conn.close()
        self._http.close()

    # --- the daemons

    def start(self, name: str, url: str | None = None, chain_url: str | None = None) -> ForkedDaemon:
        """A new daemon, or the next life of one that ended."""
        folder = self.folder / name
        if not folder.exists():
            furnish(folder, self.devnet, url or self.url, CONFIG)
            config = folder / "config.toml"
            config.write_text(
                config.read_text().replace(self.devnet.chain_url, chain_url or self.devnet.chain_url)
            )
        elif name in self.daemons:
            self.daemons[name].end()
        one = self.daemons[name] = ForkedDaemon(folder)
        return one

    def relay_to(self, url: str) -> tuple[Relay, str]:
        """A relay to a server, and the URL by it."""
        port = urlsplit(url).port
        assert port is not None
        one = self._stack.enter_context(relay(port))
        return one, url.replace(f":{port}/", f":{one.port}/")

    def until_shared(self) -> None:
        """Wait until each daemon is ready, and all accounts are held, by as many daemons as can be."""

        def is_shared() -> bool:
            seen = [one.ready() for one in self.daemons.values()]
            held = sorted(account for one in seen for account in one.get("accounts", ()))
            most = -(-len(ADDRESSES) // len(seen))
            return all(one.get("ready") and len(one["accounts"]) <= most for one in seen) and held == list(
                range(len(ADDRESSES))
            )

        until(is_shared, "the accounts are not shared by all daemons")

    def account_of(self, name: str) -> int:
        """The one account that a daemon holds."""
        (account,) = self.daemons[name].ready()["accounts"]
        return int(account)

    # --- the chain and the merchant

    def control(self, name: str, **body: object) -> None:
        self._http.post(f"{self.devnet.origin}/devnet/{name}", json=body).raise_for_status()

    def sell(self, **settings: object) -> None:
        self._http.post(f"{self.devnet.merchant_url}/merchant/settings", json=settings).raise_for_status()

    def ask_merchant(self, key: str, proof: dict[str, str]) -> httpx.Response:
        headers = {"X-Partner": "demo", "X-Wallet-Address": ADDRESSES[0], **proof}
        return self._http.post(f"{self.devnet.merchant_url}/chat", json={"message": key}, headers=headers)

    def wanted(self) -> Purchase:
        """A purchase that no other is like: the merchant's 402 for a request of its own."""
        key = f"purchase-{next(self._keys)}"
        answer = self.ask_merchant(key, {})
        assert answer.status_code == 402, answer.text
        response = {"status": 402, "headers": dict(answer.headers), "body": answer.json()}
        return Purchase(key, {"origin": self.devnet.merchant_url, "response": response})

    # --- shoppers

    def ask(self, one: Purchase, at: str, patience_s: float = 60) -> dict[str, Any] | None:
        """Ask a daemon to pay; None if it refused, died, or has no proof yet."""
        try:
            answer = self.daemons[at].http.post(
                "/v1/payments", json=one.body, headers={"Idempotency-Key": one.key}, timeout=patience_s
            )
        except httpx.HTTPError:
            return None
        told = dict(answer.json())
        if answer.status_code not in (200, 201):
            one.codes.append(told["code"])
            return None
        if told["tx_hash"] is None:  # its holder died before it told that it had signed
            return None
        assert one.tx_hash in (None, told["tx_hash"]), (one, told)
        one.payment_id, one.tx_hash = told["id"], told["tx_hash"]
        self.purchases[one.key] = one
        return told

    def call_by_proxy(self, at: str) -> int:
        """The status of a call of the merchant by a daemon's proxy."""
        token, body = {"X-Payagent-Token": TOKEN}, {"message": f"by the proxy of {at}"}
        return self.daemons[at].http.post("/proxy/t/chat", json=body, headers=token).status_code

    def buy(self, at: str) -> Purchase:
        """Pay for a new purchase, first asked at this daemon and then at the others."""
        one = self.wanted()
        self.pay(one, at)
        return one

    def pay(self, one: Purchase, at: str) -> None:
        for name in self._beginning_at(at):
            if self.ask(one, name, SHOPPER_PATIENCE_S) is not None:
                return

    def _beginning_at(self, name: str) -> Iterator[str]:
        """The daemons in turn, for a while."""
        names, end_s = sorted(self.daemons), time.monotonic() + PATIENCE_S
        for one in itertools.islice(itertools.cycle(names), names.index(name), None):
            if not self.daemons[one].is_out:
                yield one
            assert time.monotonic() < end_s, "no daemon did it"
            time.sleep(0.05)

    @contextmanager
    def shopping(self, *at: str) -> Iterator[None]:
        """Meanwhile a shopper at each of these daemons buys one thing after the other."""
        is_over = threading.Event()
        failures: list[BaseException] = []

        def shop(name: str) -> None:
            try:
                while not is_over.is_set():
                    self.buy(name)
                    is_over.wait(0.2)
            except BaseException as error:  # noqa: BLE001  raised below
                failures.append(error)

        threads = [threading.Thread(target=shop, args=(name,), daemon=True) for name in at]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            is_over.set()
            for one in threads:
                one.join()
        if failures:
            raise failures[0]

    def serve(self, one: Purchase, at: str) -> None:
        """Present the proof until the merchant serves, and report that, first at this daemon."""
        for name in self._beginning_at(at):
            with suppress(httpx.HTTPError):
                payment = f"/v1/payments/{one.payment_id}"
                http, patience_s = self.daemons[name].http, SHOPPER_PATIENCE_S
                told = http.get(f"{payment}?wait=5", timeout=patience_s).json()
                if told.get("ready") and self.ask_merchant(one.key, told["headers"]).status_code == 200:
                    http.post(f"{payment}/delivery", json={"status": 200}, timeout=patience_s).raise_for_status()
                    one.is_served = True
                    return

    # --- the judges

    def judge(self) -> None:
        """Nothing is lost and nothing is paid twice, by the chain, by the merchant and by the ledger."""
        for one in self.purchases.values():
            if not one.is_served:
                self.serve(one, min(self.daemons))
        with suppress(AssertionError):
            until(lambda: self._differences() == [], "told below")
        assert self._differences() == []
        assert self.trespasses() == []
        self.verify()

    def trespasses(self) -> list[tuple[str, int]]:
        """(table, account) of each payment and attempt that a daemon wrote for an account that it did not hold."""
        return list(self.conn.execute("SELECT what, account FROM witness ORDER BY what, account"))

    def _differences(self) -> list[str]:
        """Between what was bought, the ledger and the chain."""
        states = {state for (state,) in self.conn.execute("SELECT DISTINCT state FROM payments")}
        signed = dict(self.conn.execute("SELECT tx_id, payment_id FROM attempts").fetchall())
        own, unspent, landed = self.devnet.run(_seen)
        known = {ref for (ref,) in self.conn.execute("SELECT ref FROM utxos WHERE state = 'available'")}
        booked = [
            self.conn.execute(
                "SELECT SUM(units) FROM postings WHERE account = ?", (wallet_account(one),)
            ).fetchone()
            for one in range(len(own))
        ]
        found = {
            "states": (states - {"rejected"} <= {"confirmed", "settled"}),
            "purchases": signed == {one.tx_hash: one.payment_id for one in self.purchases.values()},
            "one transaction for each": len(signed) == len(self.purchases),
            "transactions": sorted(landed) == sorted(signed),
            "money": [units for (units,) in booked] == own,
            "UTxOs": known == unspent,
        }
        return [name for name, is_right in found.items() if not is_right]

    def verify(self) -> None:
        """`ledger verify` of the ledger, moved to a file."""
        path = self.folder / "moved.db"
        path.unlink(missing_ok=True)
        move_to_file(self.database, path)
        with closing(open_read_only(path)) as conn:
            owner = Owner(parse_address(ADDRESSES[0], NETWORKS["devnet"]), NETWORKS["devnet"])
            assert [one for one in verify(conn, owner) if isinstance(one, AuditFinding)] == []


def _seen(devnet: Devnet) -> tuple[list[int], set[str], list[str]]:
    """The lovelace at each account, the unspent outputs there, and the transactions with inputs."""
    unspent = [devnet.chain.utxos_at(raw) for raw in ADDRESSES_RAW]
    own = [sum(output.lovelace for _, output in at) for at in unspent]
    refs = {f"{ref[0]}#{ref[1]}" for at in unspent for ref, _ in at}
    return own, refs, [tx.tx_id for block in devnet.chain.blocks for tx in block.txs if tx.inputs]


@contextmanager
def drill_fleet(folder: Path, server: Server, names: str, database: str | None = None) -> Iterator[DrillFleet]:
    """A fleet with a daemon of each name, all ready. Blocks come every second. `database`: its URL, if made."""
    with DevnetThread(block_time_s=1) as devnet:
        made = DrillFleet(folder, devnet, server, database)
        try:
            for name in names:
                made.start(name)
            if names:
                made.until_shared()
            yield made
        finally:
            made.close()
