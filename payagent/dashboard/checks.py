"""Verify and reconcile as background jobs of the daemon, one run of each at a time, which every page can show.

Never: checks anything itself (the API does); changes the ledger.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

import structlog
from starlette.types import Message

from payagent.api.http.connection_limits import ABORT, STOPPING
from payagent.api.routes.params import first_of
from payagent.dashboard.in_process import InProcessApi

CheckName = Literal["verify", "reconcile"]

log = structlog.get_logger("payagent.dashboard")


@dataclass(slots=True)
class Check:
    """A run. `steps`: how many the API has reported. `report`: its answer. `problem`: why it was refused."""

    by: str
    started_at: str
    steps: int = 0
    state: Literal["running", "done", "stopped", "failed"] = "running"
    took_s: int = 0
    report: Mapping[str, Any] | None = None
    problem: Mapping[str, Any] | None = None
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Checks:
    """The newest run of each check since the daemon's start."""

    def __init__(self) -> None:
        self.newest: dict[CheckName, Check] = {}

    @property
    def is_running(self) -> bool:
        return any(check.state == "running" for check in self.newest.values())

    def start(self, name: CheckName, api: InProcessApi, by: str, **query: str) -> None:
        """Start a run as the app of `api`. While one runs, it goes on instead."""
        if name in self.newest and self.newest[name].state == "running":
            return
        check = self.newest[name] = Check(by, datetime.now(UTC).isoformat())
        # the browser's request ends before the run: only the daemon's stop is the run's as well
        outer = {STOPPING: api.outer[STOPPING], ABORT: check.stop.set}
        run = _run(check, InProcessApi(api.app, api.token_hash, outer), f"/v1/ledger/{name}", urlencode(query))
        check.task = asyncio.create_task(run, name=name)

    def stop(self, name: CheckName) -> None:
        """End a run. It only reads, so nothing is left half done."""
        if name in self.newest:
            self.newest[name].stop.set()


async def _run(check: Check, api: InProcessApi, path: str, query: str) -> None:
    began_s, pieces = asyncio.get_running_loop().time(), []
    is_refused = False

    async def receive() -> Message:
        await first_of(check.stop.wait(), api.outer[STOPPING].wait())
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal is_refused
        if message["type"] == "http.response.start":
            is_refused = message["status"] >= 400
        else:
            pieces.append(message.get("body", b""))
            check.steps += pieces[-1] == b"\n"

    try:
        await api.stream(path, query, receive, send)
        if check.stop.is_set() or api.outer[STOPPING].is_set():
            check.state = "stopped"
        elif is_refused:
            check.state, check.problem = "failed", json.loads(b"".join(pieces))
        else:
            check.state, check.report = "done", json.loads(b"".join(pieces))
    except Exception:
        log.exception("dashboard.check_failed", path=path)
        check.state = "failed"
    finally:
        check.took_s = int(asyncio.get_running_loop().time() - began_s)
