"""The servers that a fleet's `store.url` names: a primary and its standby, which a failover promotes.

Some time later the old primary is back as it was when it died, and takes writes on its lower timeline. The product
decides which of them a daemon uses (`payagent.store.db.postgresql.hosts.choose`).

Never: decides itself which one is used.
"""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from random import Random

from payagent.core.problems import Refused
from payagent.store.db.daemon_file import DaemonFile
from payagent.store.db.postgresql.connection import Database
from payagent.store.db.postgresql.hosts import HostAnswer, choose
from sim.trace import Trace

RETURNS_S = (5.0, 60.0, 300.0)
CUT_OFF_S = (20.0, 100.0, 400.0)


class FleetServers:
    """`path`: the ledger of the primary, also of the new one. `old`: that of the old primary.

    In a quarter of the seeds the URL has one address, which moves to the new primary. `timeline`: the primary's.
    `returns_s`: how long after the failover the old primary is back, or an operator takes it out of the URL.
    """

    def __init__(self, seed: int, path: Path, story: Trace, time_s: Callable[[], float]) -> None:
        self._rng = Random(f"{seed} servers")  # noqa: S311  a seed gives the same run again
        self._story, self._time_s = story, time_s
        self.path, self.old = path, path.with_name("old.db")
        self.timeline = 1
        self.returns_s = self._rng.random() * self._rng.choice(RETURNS_S)
        self._is_old_first = self._rng.random() < 0.5
        self._comes_back = self._rng.random() < 0.75
        self._cuts_off = self._rng.random() < 0.5
        self._other = "none" if self._rng.random() < 0.25 else "standby"
        self._silent: dict[int, tuple[float, float]] = {}
        """From when till when the new primary does not answer a host."""
        self._files: dict[int, DaemonFile] = {}

    def fail_over(self, hosts: int) -> None:
        """The standby is the primary now. It may be silent to some hosts, then or later."""
        self.timeline += 1
        if self._other == "standby":
            self._other = "silent"
        for number in range(hosts if self._cuts_off else 0):
            begins_s = self._time_s() + self._rng.choice((0.0, 0.0, self._rng.uniform(0, 600)))
            self._silent[number] = begins_s, begins_s + self._rng.random() * self._rng.choice(CUT_OFF_S)

    def end_outage(self, *, is_calm: bool) -> None:
        """The old primary is back, or is taken out of the URL."""
        if self._other == "silent":
            self._other = "writable" if self._comes_back and not is_calm else "none"
            if self._other == "writable":
                self._story.reach("the old primary is back")
                self._story.tell("the old primary is back")
        if is_calm:
            self._silent.clear()

    def is_silent(self, number: int) -> bool:
        """Whether the new primary does not answer a host now."""
        begins_s, ends_s = self._silent.get(number, (0.0, 0.0))
        return begins_s <= self._time_s() < ends_s

    def choose(self, number: int, *, is_starting: bool) -> HostAnswer:
        """The server that the daemon of a host connects to. Errors: as the product's."""
        is_silent = self.is_silent(number)
        answers = [_answer(self.path, "silent" if is_silent else "writable", self.timeline)]
        if self._other != "none":
            behind = 0 if self._other == "standby" else 1
            answers.insert(0 if self._is_old_first else 1, _answer(self.old, self._other, self.timeline - behind))
        file = self._files.setdefault(number, DaemonFile())
        try:
            best = choose(answers, file.timelines, is_synchronous=False, is_starting=is_starting)
        except (Refused, sqlite3.OperationalError):
            missed = "a primary" if self._other == "silent" else "the new primary, beside the old one"
            self._story.reach(f"a daemon waits for {missed if is_silent else 'the old primary'}")
            raise
        file.note_timeline(best.system, best.timeline)
        return best


def _answer(path: Path, kind: str, timeline: int) -> HostAnswer:
    place = Database(str(path), place={"host": path.stem})
    return HostAnswer(place, kind, timeline, "one", path.stem, "it does not answer")  # type: ignore[arg-type]
