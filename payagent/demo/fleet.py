"""The demo of a fleet: three daemons on one PostgreSQL, one is killed while it pays, and another carries on.

Start at `run_fleet_demo`.

Never: says that something happened which was not verified.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx

from payagent.core.money import LOVELACE, format_ada
from payagent.demo import verify
from payagent.demo.postgresql import DemoDatabase, database, pg_ctl
from payagent.demo.purchase import Purchase, Say, available, say_payment, show_books, was_submitted
from payagent.demo.stage import (
    BLOCK_TIME_S,
    PATIENCE_S,
    Daemon,
    DemoFailed,
    Stage,
    Waiting,
    child_environ,
    make_wallet,
    require,
    stopped_by_signals,
)
from payagent.devnet.server import DevnetThread
from payagent.init import Made

NAMES = ("a", "b", "c")
FUNDS_LOVELACE = 100_000_000


def missing(environ: Mapping[str, str]) -> str | None:
    """What this machine lacks for the demo, and what to install; None if nothing."""
    if find_spec("psycopg") is None:
        return "--fleet needs the extra postgresql: pip install 'CHECKOUT[postgresql]', with payagent's folder"
    if pg_ctl(environ) is None:
        return (
            "--fleet starts a PostgreSQL server, and its program pg_ctl was not found. Install PostgreSQL "
            "(Debian's package postgresql), or add the folder of pg_ctl to PATH"
        )
    return None


def run_fleet_demo(say: Say, waiting: Waiting, environ: Mapping[str, str], provider: str | None = None) -> None:
    """Play every scene. Raises `DemoFailed` at the first step with a wrong result. Ask `missing` before."""
    with _fleet(say, waiting, environ, provider) as fleet:
        _pay_anywhere(fleet, say)
        survivors = _kill_while_paying(fleet, say)
        say("\n4. The books")
        show_books(survivors[0], say)
        for on in survivors:
            require(on.api("GET", "/v1/ledger/verify")["clean"], "ledger verify has findings")
        say("   `ledger verify` finds nothing at either daemon.")
    say("\nEvery step was verified. Nothing is left behind.")


@contextmanager
def _fleet(
    say: Say, waiting: Waiting, environ: Mapping[str, str], provider: str | None
) -> Iterator[Sequence[Stage]]:
    """Start everything, and stop everything however the block ends. Yields each daemon's stage."""
    say("1. One wallet, one database, three daemons")
    with ExitStack() as stack:
        stack.enter_context(stopped_by_signals())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="payagent-demo-")))
        with waiting() as progress:
            progress("   waiting: PostgreSQL starts")
            base = stack.enter_context(database(environ))
        devnet = stack.enter_context(DevnetThread(block_time_s=BLOCK_TIME_S))
        http = stack.enter_context(httpx.Client(trust_env=False, timeout=PATIENCE_S))
        wallet = make_wallet(folder, devnet, provider)
        say(f"   chain     {devnet.chain_url}\n   merchant  {devnet.merchant_url}\n   database  {base.url}")
        with waiting() as progress:
            progress("   waiting: the ledger moves to the database")
            _move_ledger(wallet, base, folder, environ)
        daemons = [Daemon(_config_of(wallet, base, folder / name), folder / name, environ) for name in NAMES]
        for daemon in daemons:
            stack.callback(daemon.stop)
        try:
            yield _open(Stage(devnet, daemons[0], wallet, http, waiting, []), daemons, say)
        except DemoFailed as failed:
            logs = "\n".join(daemon.last_lines() for daemon in daemons)
            raise DemoFailed(f"{failed}\nThe daemons' last log lines:\n{logs}") from None


def _move_ledger(wallet: Made, base: DemoDatabase, folder: Path, environ: Mapping[str, str]) -> None:
    """As an operator does, with `payagent store copy`: the wallet's apps and tokens are in the database then."""
    _write_store(wallet.config, base, url=None)
    command = [sys.executable, "-m", "payagent", "store", "copy", "--to", base.url, "--config", str(wallet.config)]
    done = subprocess.run(  # noqa: S603  runs this program itself
        command, env=child_environ(folder, environ), capture_output=True, text=True, check=False
    )
    require(done.returncode == 0, f"`payagent store copy` ended with {done.returncode}: {done.stderr[-600:]}")


def _write_store(config: Path, base: DemoDatabase, url: str | None) -> None:
    """Add the database's password to a config, and its URL."""
    password_file = config.with_name("database-password")
    password_file.touch(mode=0o600)
    password_file.write_text(base.password)
    with config.open("a") as file:
        file.write(f'\n[store]\npassword_file = "{password_file}"\n')
        if url is not None:
            file.write(f'url = "{url}"\n[wallet]\naccounts = {len(NAMES)}\n')


def _config_of(wallet: Made, base: DemoDatabase, folder: Path) -> Path:
    """The folder of one daemon: the wallet's keystore, and a config like the wallet's for this database."""
    data_dir, config = folder / "data", folder / "config.toml"
    data_dir.mkdir(mode=0o700, parents=True)
    shutil.copy(wallet.data_dir / "keystore.json", data_dir)
    text = wallet.config.read_text().partition("\n[store]")[0]
    config.touch(mode=0o600)
    config.write_text(text.replace(str(wallet.data_dir), str(data_dir)))
    _write_store(config, base, base.url)
    return config


def _open(first: Stage, daemons: Sequence[Daemon], say: Say) -> Sequence[Stage]:
    """Start the daemons, fund an account for each, and wait until each can pay."""
    for daemon in daemons[1:]:
        daemon.start()
    first.start_daemon()
    addresses = [row["address"] for row in first.api("GET", "/v1/wallet")["accounts"]]
    fleet = [replace(first, daemon=daemon, addresses=addresses) for daemon in daemons]
    for address in addresses:
        first.control("faucet", {"address": address, "lovelace": str(FUNDS_LOVELACE)})
    for on in fleet:
        on.until(f"the daemon at {on.daemon.url} holds one account", partial(_holds_one, on))
    total = len(addresses) * FUNDS_LOVELACE
    first.until("the faucet's money arrives", lambda: available(first, LOVELACE) == total)
    for on in fleet:
        say(f"   daemon    {on.daemon.url} pays from account {_held(on)[0]}")
    say(f"   The faucet sent {format_ada(FUNDS_LOVELACE)} to each account. Each daemon sees {format_ada(total)}.")
    return fleet


def _pay_anywhere(fleet: Sequence[Stage], say: Say) -> None:
    say("\n2. The same 402 at all three")
    call = Purchase(fleet[0], "What is a proof of stake?")
    payments = []
    for on in fleet:
        call.on = on
        payments.append(call.pay())
    require(len({payment["id"] for payment in payments}) == 1, "the same 402 made a second payment")
    say_payment(payments[0], say)
    call.retry()
    verify.transactions(fleet[0], before=call.transactions_before, count=1)
    say("   Three daemons were asked, and all answer with this payment. The chain shows one transaction.")


def _kill_while_paying(fleet: Sequence[Stage], say: Say) -> Sequence[Stage]:
    """Kill a daemon between submission and answer. Returns the others."""
    say("\n3. A daemon is killed while it pays")
    victim, *others = fleet
    account = _held(victim)[0]
    victim.control("faults", {"on": "submit", "kind": "hang", "accept": "now", "count": 1})
    call = Purchase(victim, "Are you still there?")
    payment = call.pay()
    say(f"   {victim.daemon.url} pays with transaction {payment['tx_hash']}.")
    victim.until("the submission arrives", lambda: was_submitted(victim))
    process = victim.daemon.kill()
    say(f"   The network accepted it but does not answer. Now: kill -9 of process {process}.")
    victim.control("faults", {"clear": True})
    call.on = others[0]
    again = call.pay()
    require(
        (again["id"], again["tx_hash"]) == (payment["id"], payment["tx_hash"]),
        "another daemon has another payment for the same 402",
    )
    say(f"   {others[0].daemon.url} is asked the same and answers with the same payment.")
    others[0].until(f"account {account} is taken over", lambda: any(account in _held(on) for on in others))
    (heir,) = (on for on in others if account in _held(on))
    say(f"   The lease is over after 10 s. {heir.daemon.url} takes account {account} and reads the chain.")
    call.retry()
    verify.transactions(heir, before=call.transactions_before, count=1)
    say("   The client's retry is served. The chain shows one transaction.")
    return others


def _holds_one(on: Stage) -> bool:
    return len(_held(on)) == 1


def _held(on: Stage) -> list[int]:
    """The accounts that a daemon holds; none while it starts."""
    on.daemon.require_alive()
    try:
        accounts: list[int] = on.http.get(f"{on.daemon.url}/readyz").json()["accounts"]
    except httpx.TransportError:
        return []
    return accounts
