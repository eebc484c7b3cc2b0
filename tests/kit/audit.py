"""A ledger with every kind of payment, transfer, fork and refusal, and copies of it to tamper with."""

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kit.agent import (
    ADA,
    APP,
    DEVNET,
    Clock,
    OpenLedger,
    Run,
    World,
    asking_above,
    daily,
    ledger_in_a_file,
    with_terms,
)
from kit.handover import pass_ttl, with_handover
from kit.payments import wait_for_void
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.base.requests import Approver
from payagent.agent.operator.apps import NewApp, add_app, renew_token, revoke
from payagent.agent.operator.limits import set_limits
from payagent.audit.finding import AuditFinding, Head
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.payment.machine import State
from payagent.core.policy import Window
from payagent.core.problems import Refused
from payagent.devnet.server import DevnetThread
from payagent.store.db.readers import Readers
from payagent.store.db.seals import SEALED, Sealer
from payagent.store.db.triggers import TRIGGERS
from payagent.store.rows import apps

TOKEN = "5c" * 28 + "636c69"


@dataclass
class Past:
    """A ledger's file and owner, an earlier copy of the file, and the merchant's origin."""

    path: Path
    early: Path
    owner: Owner
    origin: str


async def live(world: World) -> None:
    world.fund(*[100 * ADA] * 4)
    world.fund(20 * ADA, assets={TOKEN: 1000})
    limits = daily(1000 * ADA, 100_000 * ADA) + daily(300, 1000, TOKEN)
    async with world.run(terms=with_terms(limits=limits)) as run:
        row = await run.pay_in_block("plain")
        await run.agent.deliveries.record_delivery(row.id, 200)
        world.control("rollback", depth=1)
        await run.pass_time(4)
        assert run.events(row.id).count("confirm") == 2
        world.settings(asset=TOKEN, price="250", splits=[])
        await run.pay_in_block("token")
        world.settings(asset="lovelace", price="2000000", batch=100)
        await run.pay_in_block("batch")
        world.settings(batch=1)
        await use_the_batch(run)
        await run.agent.transfers.split("app_test", 3, 10 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        await run.agent.transfers.send("app_test", world.account.address, "lovelace", 5 * ADA)
        await run.agent.submitter.drain(60)
        await run.settle_down()
        await decide_on_some(world, run)
    async with world.run(terms=with_terms(limits=daily(1, 1))) as run:
        (world.folder / "early").mkdir()
        copy_of(world.folder / "ledger.db", world.folder / "early")
        await run.run_pass()
        with pytest.raises(Refused, match="limit_exceeded"):
            await run.agent.pay(world.ask("too much"))
    async with world.run(terms=with_handover) as run:
        await run.run_pass()
        taken_back = await run.pay("taken back")
        await pass_ttl(world, run)
        await wait_for_void(world, run)
        assert run.state(taken_back.id) is State.VOID
        world.settings(price="3000000")
        await run.pay("on its way")
        await set_limits(run.context, APP, None, None, "lovelace", {Window.WEEK: 10**12, Window.TOTAL: 10**13})
        await set_limits(run.context, APP, None, None, "lovelace", {Window.TOTAL: None})
        operator = apps.require(run.context.conn, APP)
        wanted = NewApp("bot", frozenset({"pay"}), ("t",), None, "lovelace", {}, None)
        await add_app(run.context, operator, wanted, "1" * 64)
        await renew_token(run.context, operator, "bot", "2" * 64, None)
        await revoke(run.context, operator, "bot")
        await renew_token(run.context, operator, "bot", "3" * 64, None)


async def decide_on_some(world: World, run: Run) -> None:
    """Three approvals: one approved and paid, one denied, one undecided."""
    agent, by = run.agent, Approver("token", APP)
    asking_above(agent.context, {"lovelace": 1 * ADA})
    approved, denied, _ = [(await agent.pay(world.ask(f"asked {n}")))[0] for n in range(3)]
    await agent.decisions.approve(approved.id, by)
    await agent.decisions.deny(denied.id, by)
    await agent.submitter.drain(60)
    await run.settle_down()
    asking_above(agent.context, {})


async def use_the_batch(run: Run) -> None:
    """Uses by the app that bought the balance and by another: served uses, and one taken back."""
    (operator,) = apps.all_apps(run.context.conn)
    user = await add_app(
        run.context, operator, NewApp("user", frozenset({"pay"}), None, None, "lovelace", {}, None), "4" * 64
    )
    await set_limits(run.context, APP, "user", None, "lovelace", {Window.TOTAL: 10 * ADA})
    calls = [
        ServedRequest(app, run.world.origin, Buyer("demo", run.world.address), "POST", "/chat", None)
        for app in (APP, user.id)
    ]
    for call in (*calls, calls[1]):
        await run.agent.prepaid_calls.record_call(call, await run.agent.prepaid_calls.let_through(call))
    await run.agent.prepaid_calls.give_back(await run.agent.prepaid_calls.let_through(calls[1]))


@contextmanager
def past(folder: Path, open_ledger: OpenLedger = ledger_in_a_file) -> Iterator[Past]:
    clock = Clock()
    with DevnetThread(now_ms=clock.now_ms) as devnet:
        world = World(devnet, folder)
        world.clock = clock
        world.open_ledger = open_ledger
        world.terms = replace(world.terms, settle_depth=3)
        asyncio.run(live(world))
        world.http.close()
        yield Past(
            folder / "ledger.db",
            folder / "early" / "ledger.db",
            Owner(world.account.address, DEVNET),
            world.origin,
        )


def copy_of(path: Path, folder: Path) -> Path:
    """A copy that is one file."""
    made = folder / "ledger.db"
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(made)) as target:
        source.backup(target)
    return made


@contextmanager
def unguarded(path: Path) -> Iterator[sqlite3.Connection]:
    """The file without its triggers, as anyone can open it. Each table of record has three rows or more."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        for trigger in TRIGGERS:
            conn.execute(f"DROP TRIGGER {trigger.name}")
        sealer = Sealer(conn)
        before = sealer.last_rows()
        for table in SEALED:
            _fill(conn, table)
        sealer.seal(before)
        yield conn


def _fill(conn: sqlite3.Connection, table: str) -> None:
    """Rows with arbitrary values, where the history has too few."""
    columns = [(name, kind) for _, name, kind, *_ in conn.execute(f"PRAGMA table_info({table})")]
    marks = ", ".join("?" * len(columns))
    for n in range(1000, 1003 - conn.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]):
        values = [{"INTEGER": n, "BLOB": b"%d" % n}.get(kind, f"{name}{n}") for name, kind in columns]
        number = conn.execute(f"SELECT COALESCE(MAX(rowid), 0) + 1 FROM {table}").fetchone()[0]
        if columns[0][1] == "INTEGER":
            values[0] = number
        conn.execute(f"INSERT INTO {table} VALUES ({marks})", values)


def told(conn: sqlite3.Connection, owner: Owner, noted: Head | None = None) -> set[AuditFinding]:
    """What verify finds, except for the missing triggers."""
    return {
        one for one in verify(conn, owner, noted) if isinstance(one, AuditFinding) and one.table != "sqlite_master"
    }


def tamper(path: Path, *statements: str) -> None:
    """Change the file as anyone who can write it: drop the triggers, run the statements, restore the triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA ignore_check_constraints = ON")
        for trigger in TRIGGERS:
            conn.execute(f"DROP TRIGGER {trigger.name}")
        changed = [conn.execute(statement).rowcount for statement in statements]
        for trigger in TRIGGERS:
            conn.execute(trigger.sql)
    assert all(count > 0 for count in changed), changed


def append(path: Path, *statements: str) -> None:
    """Add rows as anyone who can write the file, with a valid seal and any references."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        sealer = Sealer(conn)
        before = sealer.last_rows()
        for statement in statements:
            assert conn.execute(statement).rowcount > 0, statement
        sealer.seal(before)


def findings(path: Path, owner: Owner, noted: Head | None = None) -> list[AuditFinding]:
    with Readers(path).snapshot() as conn:
        return [one for one in verify(conn, owner, noted) if isinstance(one, AuditFinding)]


def head_of(path: Path, owner: Owner) -> Head:
    with Readers(path).snapshot() as conn:
        (head,) = (one for one in verify(conn, owner) if isinstance(one, Head))
    return head


def fresh(path: Path, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return Path(shutil.copy(path, folder / "ledger.db"))
