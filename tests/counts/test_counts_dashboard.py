"""What a page of the dashboard costs does not grow with the ledger."""

import importlib.machinery
import importlib.util
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from urllib.parse import urlsplit

import httpx
import pytest
from kit.agent import World, world_on
from kit.api import served
from kit.effort import pick
from kit.http import NO_TLS

from payagent.agent.operator.approval_links import KEY_BYTES, ApprovalLinks
from payagent.dashboard.app import HOST
from payagent.dashboard.build import MODULES
from payagent.devnet.server import DevnetThread
from payagent.store.db import readers

ROOT = Path(__file__).parents[2]
FEW, MANY = pick(100, 1_000), pick(1_000, 10_000)
GROWTH_MAX = 1.1
WHOLE = ("/ui/events", "/ui/ledger/export", "/ui/ledger/snapshot")
"""A stream, and downloads that are as long as the ledger."""
GROWING = {
    "/ui/": "limits over 30 days",
    "/ui/apps": "limits over 30 days",
    "/ui/apps/new": "limits over 30 days",
    "/ui/limits": "limits over 30 days",
    "/ui/settings": "the counters of all payments",
    "/ui/ledger/spend": "the payments of the period",
}
"""Pages whose few statements visit more rows after more payments: which."""
PAGES = sorted(
    one.path
    for module in MODULES
    for one in module.PAGES
    if not one.is_form
    and one.path not in (*WHOLE, "/ui/channels")
    and "{" not in one.path.replace("{payment_id}", "")
)


def make_ledger(path: Path, count: int) -> None:
    """A ledger of so many payments, one a minute, of which the last was settled a moment ago."""
    loader = importlib.machinery.SourceFileLoader("payagent_make_ledger", str(ROOT / "scripts/make_ledger"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    maker = importlib.util.module_from_spec(spec)
    loader.exec_module(maker)
    maker.BEGAN_MS = int(time.time() * 1000) - (count + maker.BLOCKS_UNTIL_SETTLED) * maker.EVERY_MS
    maker.make(path, count)


@dataclass
class Cost:
    """Statements, and SQLite's steps in hundreds: at least one step for each row that is visited."""

    statements: int = 0
    steps: int = 0

    def watch(self, conn: Connection) -> None:
        conn.set_trace_callback(self._statement)
        conn.set_progress_handler(self._step, 100)

    def _statement(self, _sql: str) -> None:
        self.statements += 1

    def _step(self) -> None:
        self.steps += 1

    def taken(self) -> tuple[int, int]:
        """(statements, steps) since the last call."""
        told = self.statements, self.steps
        self.statements = self.steps = 0
        return told


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cost]:
    """Counts what every connection does that reads the ledger."""
    cost, open_read_only = Cost(), readers.open_read_only

    def opened(*arguments: object, **options: object) -> Connection:
        conn: Connection = open_read_only(*arguments, **options)  # type: ignore[arg-type]
        cost.watch(conn)
        return conn

    with monkeypatch.context() as patched:
        patched.setattr(readers, "open_read_only", opened)
        yield cost


@asynccontextmanager
async def browsing(world: World) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """A signed-in client of the dashboard over a world's ledger, and the id of the newest payment."""
    async with world.run() as run, served(run, links=ApprovalLinks(f"http://{HOST}", bytes(KEY_BYTES))) as api:
        (newest,) = run.context.conn.execute("SELECT id FROM payments ORDER BY seq DESC LIMIT 1").fetchone()
        link = (await api.http.post("/v1/dashboard/links")).json()["url"]
        page = {"host": HOST, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"}
        opened = await api.http.post(urlsplit(link).path, headers=page)
        cookie = opened.headers["set-cookie"].partition(";")[0]
        async with httpx.AsyncClient(
            base_url=api.url, headers={"host": HOST, "cookie": cookie}, verify=NO_TLS, trust_env=False, timeout=60
        ) as client:
            yield client, newest


async def test_no_page_costs_more_after_many_payments_than_after_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page takes as many statements, and but for those in GROWING as many steps."""
    told: dict[str, list[tuple[int, int]]] = {path: [] for path in PAGES}
    for count in (FEW, MANY):
        folder = tmp_path / str(count)
        folder.mkdir()
        make_ledger(folder / "ledger.db", count)
        with DevnetThread() as devnet, world_on(devnet, folder) as world, watched(monkeypatch) as cost:
            async with browsing(world) as (client, newest):
                for path in PAGES:
                    address = path.replace("{payment_id}", newest)
                    await client.get(address)
                    cost.taken()
                    answer = await client.get(address)
                    assert answer.status_code == 200, f"{address}: {answer.text}"
                    told[path].append(cost.taken())
    for path, ((few, few_steps), (many, many_steps)) in told.items():
        assert 0 < few == many, f"{path}: {few} and {many} statements"
        if path not in GROWING:
            assert many_steps <= few_steps * GROWTH_MAX + 1, f"{path}: {few_steps}00 and {many_steps}00 steps"
    most = [2 * cost for cost in told["/ui/"][-1]]
    assert all(cost <= limit for cost, limit in zip(told["/ui/ledger/month"][-1], most, strict=True)), told
