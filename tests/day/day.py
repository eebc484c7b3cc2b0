"""A day of payments on a devnet, as users make them, and then the audit of that day.

Three merchants (one sells requests, one asks for a token, one sells batches), two apps behind the proxy, a top-up,
a refusal, a rollback and a kill -9. Then every bookkeeping command, compared with the chain. Run by `scripts/day`;
it uses only commands, the HTTP API, the devnet's switches, bean-check and hledger.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

import httpx
from kit.cli import Result, invoke
from kit.http import NO_TLS, free_port

from payagent.api.http.tokens import hash_token
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.store.rows import apps

ADA = 1_000_000
TOKEN = "6a" * 28 + "646179"
FUNDS, SENT, TOKENS = 900 * ADA, 5 * ADA, 1_000
PATIENCE_S = 60.0
LIMITS = f"""
[[limits.assets]]
asset = "{TOKEN}"
per_payment = "1000"
per_day = "5000"
"""
TOPUP = """
[merchants.batches.topup]
method = "POST"
path = "/payments/topup"
body = "{}"
"""
MERCHANTS = ("calls", "tokens", "batches")


class DayFailed(Exception):  # noqa: N818  it names the outcome
    """A check of the day failed."""


def require(condition: object, otherwise: str) -> None:
    if not condition:
        raise DayFailed(otherwise)


@dataclass
class Day:
    """The running processes, and how to call them."""

    folder: Path
    devnet: DevnetThread
    urls: Mapping[str, str]
    say: Callable[[str], None]
    http: httpx.Client
    environ: dict[str, str]
    config: Path
    address: str = ""
    tokens: dict[str, str] = field(default_factory=dict)
    daemon: subprocess.Popen[bytes] | None = None
    api: str = ""
    is_sample: bool = False
    """Run the commands in this process, and check only one receipt for each kind of payment and merchant."""

    def command(self, *words: str, exit_code: int = 0) -> str:
        """Run a payagent command and return its stdout."""
        if self.is_sample:
            with patch.dict(os.environ, self.environ, clear=True):
                done = invoke(*words)
        else:
            told = subprocess.run(
                [sys.executable, "-m", "payagent", *words],
                capture_output=True, text=True, env=self.environ, timeout=PATIENCE_S * 2, check=False,
            )  # fmt: skip
            done = Result(told.returncode, told.stdout, told.stderr)
        require(
            done.code == exit_code,
            f"payagent {' '.join(words)}: exit {done.code}, not {exit_code}\n{done.out}{done.err}",
        )
        return done.out

    def told(self, *words: str, exit_code: int = 0) -> dict[str, Any]:
        return dict(json.loads(self.command(*words, "--json", exit_code=exit_code)))

    def get(self, path: str) -> dict[str, Any]:
        answer = self.http.get(self.api + path, headers={"authorization": f"Bearer {self.tokens['operator']}"})
        require(answer.is_success, f"{path}: {answer.status_code} {answer.text[:300]}")
        return dict(answer.json())

    def control(self, path: str, **body: object) -> None:
        answer = self.http.post(f"{self.devnet.origin}/devnet/{path}", json=body)
        require(answer.is_success, f"/devnet/{path}: {answer.text[:300]}")

    def set_merchant(self, name: str, **settings: object) -> None:
        answer = self.http.post(f"{self.urls[name]}/merchant/settings", json=settings)
        require(answer.is_success, f"{name} did not take its settings: {answer.text[:300]}")

    def serve(self) -> None:
        """Start the daemon on a free port, and wait until it can pay."""
        with (self.folder / "daemon.log").open("ab") as log:
            self.daemon = subprocess.Popen(
                [sys.executable, "-m", "payagent", "serve", "--config", str(self.config)],
                env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.until("the daemon is ready", self._is_ready)

    def _is_ready(self) -> bool:
        require(self.daemon is not None and self.daemon.poll() is None, "the daemon ended: " + self.last_words())
        try:
            return self.http.get(f"{self.api}/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def kill(self, number: signal.Signals) -> None:
        if self.daemon is not None:
            self.daemon.send_signal(number)
            self.daemon.wait()
            self.daemon = None

    def last_words(self) -> str:
        return "\n".join((self.folder / "daemon.log").read_text(errors="replace").splitlines()[-12:])

    def until(self, what: str, reached: Callable[[], bool]) -> None:
        ends_s = time.monotonic() + PATIENCE_S
        while not reached():
            require(time.monotonic() < ends_s, f"waited in vain: {what}\n{self.last_words()}")
            time.sleep(0.05)

    def is_quiet(self) -> bool:
        """No payment is in flight, and the daemon has seen the newest block."""
        return all(row["held"] == "0" for row in self.get("/v1/wallet")["assets"])

    def on_chain(self) -> dict[str, int]:
        """Units per asset at the wallet's address, by the chain's own API."""
        rows = self.http.get(f"{self.devnet.chain_url}/addresses/{self.address}/utxos").json()
        total: dict[str, int] = {}
        for row in rows:
            for part in row["amount"]:
                total[part["unit"]] = total.get(part["unit"], 0) + int(part["quantity"])
        return total


async def proxied(day: Day, app: str, merchant: str, messages: list[str]) -> list[int]:
    """Send concurrent requests of an app through the proxy; returns their statuses."""
    url = f"{day.api}/proxy/{merchant}/chat"
    headers = {"x-payagent-token": day.tokens[app]}
    async with httpx.AsyncClient(verify=NO_TLS, trust_env=False, timeout=PATIENCE_S) as client:
        answers = await asyncio.gather(
            *(client.post(url, json={"message": message}, headers=headers) for message in messages)
        )
    return [answer.status_code for answer in answers]


def call(day: Day, app: str, merchant: str, *messages: str, status: int = 200) -> None:
    statuses = asyncio.run(proxied(day, app, merchant, list(messages)))
    require(set(statuses) == {status}, f"{merchant} for {app}: {statuses}, not {status}\n{day.last_words()}")


# --- the day -----------------------------------------------------------------------------------------------------


def morning(day: Day) -> None:
    day.say("A wallet, a config, two apps, and money")
    passphrase = day.folder / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(secrets.token_urlsafe(24))
    words = ["init", "--network", "devnet", "--chain-url", day.devnet.chain_url]
    for name in MERCHANTS:
        words += ["--merchant", f"{name}={day.urls[name]}", "--partner", f"{name}=day"]
    words += ["--passphrase-file", str(passphrase), "--config", str(day.config)]
    made = day.told(*words, "--data-dir", str(day.folder / "data"))
    day.address = made["address"]
    day.tokens = {
        "operator": made["token"],
        **{app: "pat_" + secrets.token_hex(24) for app in ("chat", "research")},
    }
    _add_apps(day)
    port = free_port()
    day.api = f"http://127.0.0.1:{port}"
    text = day.config.read_text()
    require("[api]" not in text, "the config has an [api] table of its own")
    day.config.write_text(f'{text}\n[api]\nlisten = "127.0.0.1:{port}"\n{TOPUP}{LIMITS}')
    day.set_merchant("tokens", asset=TOKEN, price="250", splits=[{"role": "platform", "units": "20"}])
    day.set_merchant("batches", batch=5, price=str(20 * ADA))
    day.serve()
    for _ in range(9):
        day.control("faucet", address=day.address, lovelace=str(FUNDS // 9))
    for _ in range(2):
        day.control("faucet", address=day.address, assets={TOKEN: str(TOKENS // 2)})
    day.until("the money arrives", lambda: len(day.get("/v1/wallet/utxos")["utxos"]) == 11)


def _add_apps(day: Day) -> None:
    writer = Writer(day.folder / "data" / "ledger.db")
    for app in ("chat", "research"):
        job = partial(
            apps.add_with_token,
            app_id=f"app_{app}",
            name=app,
            token_hash=hash_token(day.tokens[app]),
            scopes=["pay", "read"],
            now_ms=1,
        )
        writer.submit("app", job).result()
    writer.close()


def forenoon(day: Day) -> None:
    day.say("Two apps call two merchants: in ADA with revenue shares, and in a token")
    call(day, "chat", "calls", "what is a lovelace?", "what is an epoch?")
    call(day, "research", "calls", "what is a stake pool?")
    call(day, "research", "tokens", "what is a native token?", "who mints it?")
    call(day, "chat", "tokens", "and who burns it?")


def noon(day: Day) -> None:
    day.say("A merchant that sells batches of five: twelve first calls at once buy three")
    call(day, "chat", "batches", *(f"question {number}" for number in range(12)))
    day.until("the twelve calls are booked", lambda: day.told("prepaid", "list")["prepaid"][0]["used"] == "12")
    (pool,) = day.told("prepaid", "list")["prepaid"]
    require(
        (pool["bought"], pool["left"], pool["unexplained"]) == ("15", "3", "0"),
        f"three batches of five were bought and twelve calls made, and payagent says {pool}",
    )
    day.say("A top-up: two batches more")
    day.command("prepaid", "topup", "batches", "--amount", "46 ADA", "--wait")
    (pool,) = day.told("prepaid", "list")["prepaid"]
    require((pool["bought"], pool["left"]) == ("25", "13"), f"after the top-up payagent says {pool}")


def afternoon(day: Day) -> None:
    day.say("A refusal: a price above the limit")
    day.set_merchant("calls", price=str(5_000 * ADA))
    call(day, "research", "calls", "what does it cost?", status=403)
    day.set_merchant("calls", price=str(10 * ADA))
    day.say("A kill -9 while the provider keeps silent, and the same call again")
    day.control("faults", on="submit", kind="hang", accept="now", count=1)
    body, url = {"message": "are you still there?"}, f"{day.api}/proxy/calls/chat"
    headers = {"x-payagent-token": day.tokens["chat"]}

    def ask() -> None:
        with suppress(httpx.TransportError):
            httpx.post(url, json=body, headers=headers, verify=NO_TLS, trust_env=False, timeout=PATIENCE_S)

    def is_silent() -> bool:
        return "submit:hang" in day.devnet.run(lambda devnet: set(devnet.node.switches.triggered))

    asking = Thread(target=ask)
    asking.start()
    day.until("the provider keeps silent", is_silent)
    day.kill(signal.SIGKILL)
    asking.join()
    day.control("faults", clear=True)
    day.serve()
    call(day, "chat", "calls", "are you still there?")
    day.say("A rollback of three blocks, and a transfer out of the wallet")
    day.until("nothing is on its way", day.is_quiet)
    call(day, "research", "calls", "the last question of the day")
    day.control("rollback", depth=3, readd=True)
    external = "addr_test1vpqgspvmh6m2m5pwangvdg499srfzre2dd96qq57nlnw6yctpasy4"
    day.command("wallet", "send", external, "--amount", "5 ADA", "--yes")


def evening(day: Day) -> None:
    """Wait until everything is final enough to be booked."""
    day.say("Evening: everything is confirmed")

    def is_done() -> bool:
        rows = day.get("/v1/payments?limit=200")["payments"]
        open_states = ("reserved", "signed", "in_flight", "in_block")
        return day.is_quiet() and not any(row["state"] in open_states for row in rows)

    day.until("everything is confirmed", is_done)


# --- the audit ---------------------------------------------------------------------------------------------------


def audit(day: Day) -> None:
    chain = day.on_chain()
    verdict = day.told("ledger", "verify")
    require(verdict["clean"], f"verify: {verdict}")
    day.say("verify: clean")
    reconciled = day.told("ledger", "reconcile")
    require(reconciled["clean"], f"reconcile: {reconciled}")
    day.say("reconcile: clean")
    spend = day.told("ledger", "spend", "--by", "merchant,day")
    totals = {row["asset"]: int(row["total"]) for row in spend["totals"]}
    require(totals == _sum(spend["spend"]), f"the rows of spend do not add up: {spend}")
    change = {"lovelace": _deposits(day, "lovelace") - chain["lovelace"], TOKEN: TOKENS - chain[TOKEN]}
    require(totals == change, f"spend says {totals}, the chain shows {change}")
    day.say(f"spend: {totals['lovelace'] / ADA:.6f} ADA and {totals[TOKEN]} tokens, as the chain shows")
    _accounting(day, chain)
    _receipts(day)


def _sum(rows: list[dict[str, Any]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for row in rows:
        total[row["asset"]] = total.get(row["asset"], 0) + int(row["total"])
    return total


def _deposits(day: Day, asset: str) -> int:
    """What was received, by the deposit entries alone."""
    rows = [json.loads(line) for line in day.command("ledger", "export", "--format", "jsonl").splitlines()]
    return sum(
        int(line["units"])
        for row in rows
        if row.get("kind") in ("deposit", "deposit_reversed")
        for line in row["postings"]
        if line["account"] == "wallet" and line["asset"] == asset
    )


def _accounting(day: Day, chain: Mapping[str, int]) -> None:
    """The same totals by two programs that know nothing of payagent."""
    beans, journal = day.folder / "day.beancount", day.folder / "day.journal"
    beans.write_text(day.command("ledger", "export", "--format", "beancount"))
    checked = subprocess.run(
        [str(Path(sys.executable).with_name("bean-check")), str(beans)],
        capture_output=True,
        text=True,
        check=False,
    )
    require(checked.returncode == 0, f"bean-check: {checked.stdout}{checked.stderr}")
    day.say("bean-check: accepts the export")
    journal.write_text(day.command("ledger", "export", "--format", "hledger"))
    hledger = shutil.which("hledger")
    if hledger is None:
        day.say("hledger: NOT RUN, it is not installed")
        return
    for words in (
        ["check", "--strict"],
        ["balance", "Assets:Payagent", "--no-elide", "-N", "--flat", "-O", "csv"],
    ):
        done = subprocess.run([hledger, "-f", str(journal), *words], capture_output=True, text=True, check=False)
        require(done.returncode == 0, f"hledger: {done.stdout}{done.stderr}")
    ada = f"{chain['lovelace'] / ADA:.6f} ADA"
    require(ada in done.stdout, f"hledger does not show {ada}: {done.stdout}")
    day.say("hledger: the same totals")


def _receipts(day: Day) -> None:
    """The payments' receipts, checked without the daemon."""
    rows = day.get("/v1/payments?limit=200")["payments"]
    if day.is_sample:
        rows = list({(row["kind"], row["origin"]): row for row in rows}.values())
    file = day.folder / "receipt.json"
    for row in rows:
        file.write_text(day.command("payments", "show", row["id"], "--receipt"))
        day.command("ledger", "verify", "--receipt", str(file))
    states = sorted({row["state"] for row in rows})
    day.say(f"receipts: {len(rows)} payments ({', '.join(states)}), each checked by itself")


@contextmanager
def stage(say: Callable[[str], None]) -> Iterator[Day]:
    with (
        tempfile.TemporaryDirectory(prefix="payagent-day-") as name,
        DevnetThread(block_time_s=1, merchants=len(MERCHANTS)) as devnet,
        httpx.Client(verify=NO_TLS, trust_env=False, timeout=PATIENCE_S) as http,
    ):
        folder = Path(name)
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL", "TMPDIR") if key in os.environ}
        config = folder / "config.toml"
        environ = kept | {"HOME": name, "PAYAGENT_CONFIG": str(config)}
        urls = dict(zip(MERCHANTS, devnet.devnet.merchants, strict=True))
        day = Day(folder, devnet, urls, say, http, environ, config)
        try:
            yield day
        finally:
            day.kill(signal.SIGTERM)


def run_day(say: Callable[[str], None], *, is_sample: bool = False) -> None:
    """Run the day; raises `DayFailed` at the first check that fails."""
    with stage(say) as day:
        day.is_sample = is_sample
        for part in (morning, forenoon, noon, afternoon, evening, audit):
            part(day)


if __name__ == "__main__":
    began_s = time.monotonic()
    try:
        run_day(lambda text: print(text, flush=True))
    except DayFailed as failed:
        sys.exit(f"The day failed: {failed}")
    print(f"Everything adds up, to the unit ({time.monotonic() - began_s:.0f} s).")
