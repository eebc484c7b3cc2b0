"""`payagent serve` in a process forked from one that has imported it, with orders for its commit points.

An order is (commit point, action), and is carried out once. The daemon says so first, over the same pipe. An order
without a point is carried out at the next one.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
from kit.cli import until
from kit.daemons_of_a_fleet import TOKEN
from kit.http import NO_TLS

from payagent.agent.base.ports import SystemClock
from payagent.daemon.serve import serve
from payagent.log import Redactor, configure_logging
from payagent.settings.loading import load_settings
from payagent.store.db import committer
from payagent.store.db.committer import Committer
from payagent.store.db.fence import AccountClaim, Seat

BORN_S = 60

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["payagent.daemon.serve", "payagent.settings.loading"])


# --- in the daemon's process


def _set_an_hour_ahead(_pipe: Connection) -> None:
    setattr(SystemClock, "now_ms", lambda _clock: time.time_ns() // 1_000_000 + 3_600_000)  # noqa: B010


def _take_fence_away(_pipe: Connection) -> None:
    """From now on the daemon never asks who holds an account."""

    def claims_of_all(conn: Any, _holder: str) -> dict[int, AccountClaim]:
        rows = conn.execute("SELECT account, epoch, proven_timeline, noted FROM accounts")
        return {account: AccountClaim(*rest) for account, *rest in rows}

    def prove_only(seat: Seat, claims: Any, timeline: int) -> None:
        seat._proven = frozenset(one for one, claim in claims.items() if claim.proven_timeline == timeline)

    setattr(Seat, "check", prove_only)  # noqa: B010  a method is not to be assigned
    setattr(Committer, "_is_fenced_off", lambda _self, _job: False)  # noqa: B010
    setattr(committer, "claims_of", claims_of_all)  # noqa: B010  a module does not export what it imports


ACTIONS: dict[str, Callable[[Connection], object]] = {
    "kill": lambda _pipe: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda _pipe: signal.pthread_kill(threading.get_ident(), signal.SIGSTOP),  # at once, unlike os.kill
    "wait": lambda pipe: pipe.recv(),
    "an hour ahead": _set_an_hour_ahead,
    "without a fence": _take_fence_away,
}


class _Orders:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._order: tuple[str | None, str] | None = None

    def at(self, point: str) -> None:
        if self._pipe.poll():
            self._order = self._pipe.recv()
        if self._order is not None and self._order[0] in (None, point):
            _, action = self._order
            self._order = None
            self._pipe.send(point)
            ACTIONS[action](self._pipe)


def _serve(config: Path, log: Path, pipe: Connection) -> None:
    with log.open("a", buffering=1) as out:
        os.dup2(out.fileno(), sys.stderr.fileno())
    redactor = Redactor()
    configure_logging(sys.stderr, redactor)
    serve(
        load_settings(config, {}),
        config=config,
        environ={},
        can_ask=False,
        announce=lambda where: pipe.send(where["api"]),
        redactor=redactor,
        checkpoint=_Orders(pipe).at,
    )


# --- in the test's


class ForkedDaemon:
    """A daemon that serves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_out = False
        """Whether it was killed or stopped."""
        self._woken_at = 0
        self._pipe, theirs = _FORKS.Pipe()
        self._log = folder / "log"
        self.process: BaseProcess = _FORKS.Process(target=_serve, args=(folder / "config.toml", self._log, theirs))
        self.process.start()
        theirs.close()
        assert self._pipe.poll(BORN_S), self.log
        headers = {"Authorization": f"Bearer {TOKEN}"}
        self.http = httpx.Client(
            base_url=self._pipe.recv(), headers=headers, verify=NO_TLS, trust_env=False, timeout=60
        )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def ready(self) -> dict[str, Any]:
        return dict(self.http.get("/readyz").json())

    def order(self, action: str, point: str | None = None) -> None:
        """Carry out an action at a commit point, or at the next one."""
        self._pipe.send((point, action))

    def _has_reached(self) -> bool:
        return self._pipe.poll() and bool(self._pipe.recv())

    def reach(self) -> None:
        """Wait until the daemon has come to the point of its order."""
        until(self._has_reached, "the point of the order was not reached")

    def go_on(self) -> None:
        """End its `wait`."""
        self._pipe.send("go")

    def wake(self) -> None:
        """End its `stop`."""
        assert self.process.pid is not None
        self.is_out = False
        self._woken_at = len(self.log)
        os.kill(self.process.pid, signal.SIGCONT)

    def until_it_lost(self) -> None:
        """Wait until the daemon notices, after it was woken, that another has its account."""
        until(
            lambda: "fleet.account_lost" in self.log[self._woken_at :],
            "it did not notice that it lost its account",
        )

    def end(self) -> None:
        """kill -9, if it runs."""
        self.process.kill()
        self.process.join()
        self._pipe.close()
        self.http.close()
