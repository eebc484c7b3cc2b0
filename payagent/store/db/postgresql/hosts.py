"""Which of the servers that `store.url` names is used: all are asked side by side before each connection.

An old primary that comes back after a failover takes writes again, on a lower timeline than the new primary's. A
daemon that commits to it may pay what was paid already. `choose` has the rules. The writer's thread looks. The
readers use the server that it found.

May import: core, store.db, sqlite3, psycopg, structlog. Never: commits; waits for a host to come back.
"""

import re
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal

import psycopg.conninfo
import structlog

from payagent.core.problems import Refused
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.connection import Database, PostgresqlConnection
from payagent.store.db.postgresql.server import require_newest_timeline

LOOK_S = 5
"""How long the hosts have to answer. One whose processes are stopped accepts a connection and says nothing."""

_HOSTS_MAX = 32
_LISTS = ("host", "hostaddr", "port")
"""The parameters of a URL that have a value for each host, or one for all."""

_READ_ONLY = re.compile("session is read-only|hot standby mode")
_SILENT = re.compile(
    r"Is the server running|time(d )?out|resolve|translate|o route|nreachable|is down|closed the connection|"
    r"reset by peer|Broken pipe|EOF|eof|the database system is|too many clients|connection slots|terminating"
)
"""In the errors of a server that is away, starts or stops. libpq's own are English. Any other is a refusal."""

log = structlog.get_logger("payagent.store")


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What a host answered, and `why` if it does not take this daemon's writes.

    `silent`: it cannot be reached, starts or stops, or has not answered in time. `refuses`: by TLS,
    authentication or rights. `system`: the identifier of its data. `started`: when, to the microsecond. With
    `system` it tells whether two names lead to one server.
    """

    database: Database
    kind: Literal["writable", "standby", "silent", "refuses"]
    timeline: int = 0
    system: str = ""
    started: str = ""
    why: str = ""


def choose(
    answers: Sequence[HostAnswer], recorded: Mapping[str, int], *, is_synchronous: bool, is_starting: bool
) -> HostAnswer:
    """The server to use. `recorded`: the newest timeline that this machine has used, by the data's identifier.

    The first row that fits decides:

    | answers | then |
    |---|---|
    | a host refuses a daemon that starts | `store_failed` |
    | no host takes writes | sqlite3.OperationalError |
    | servers with different data take writes | `config_invalid` |
    | two servers take writes on the highest timeline | `config_invalid` |
    | the highest timeline is lower than the recorded one | `config_invalid` |
    | each host is a standby or takes writes | the server on the highest timeline |
    | that timeline is higher than the recorded one | the same |
    | it is the recorded one, or none is recorded; a synchronous daemon | the same |
    | the same, an asynchronous daemon | `store_failed`, and `waits_for` names the other hosts |

    A daemon that runs takes a host that refuses for one that is silent.
    """
    if is_starting and (refusing := [one for one in answers if one.kind == "refuses"]):
        raise Refused(
            "store_failed",
            f"{refusing[0].database.host} of store.url refuses this daemon: {refusing[0].why}. It may be the "
            "primary, so nothing was changed. Let the daemon in, or take the host out of store.url",
        )
    writable = list({(one.system, one.started): one for one in answers if one.kind == "writable"}.values())
    if not writable:
        reasons = [f"{one.database.host}: {one.why}" for one in answers]
        raise sqlite3.OperationalError(f"no host takes writes. {'; '.join(reasons)}")
    best = max(writable, key=lambda one: one.timeline)
    for one in writable:
        if one is not best and (one.system != best.system or one.timeline == best.timeline):
            raise Refused(
                "config_invalid",
                f"{best.database.host} and {one.database.host} both take writes, and neither replaces the other. "
                "Payments may be in either, so nothing was changed. Stop the one that should not",
            )
    known = recorded.get(best.system, 0)
    require_newest_timeline(best.timeline, known, best.system, {})
    away = [one for one in answers if one.kind in ("silent", "refuses")]
    if away and not is_synchronous and not best.timeline > known > 0:
        hosts = ", ".join(one.database.host for one in away)
        raise Refused(
            "store_failed",
            f"{hosts} of store.url does not answer: {away[0].why}. It may be a newer primary than "
            f"{best.database.host}, so nothing is committed meanwhile. Start it, or take it out of store.url and "
            "restart payagent",
            waits_for=hosts,
        )
    return best


def newest(url: str, password: str | None = None) -> Database:
    """The server that a command beside the daemons uses. Errors: as `choose`, but it waits for no host."""
    return choose(_ask_all(Database(url, password)), {}, is_synchronous=True, is_starting=False).database


class Hosts:
    """The hosts of `store.url`, for one daemon: its writer looks, and its readers follow.

    `timeline`: of the server that the writer was told to connect to; 0 before its first look.
    """

    def __init__(self, database: Database, seat: Seat | None) -> None:
        self._database = database
        self._seat = seat or Seat("", "", {})
        self.timeline = 0
        self._found = database
        self._server: Database | Refused = Refused("store_failed", "the database was not looked for yet")

    @property
    def server(self) -> Database:
        """The server that the writer uses. Refused: `store_failed`, with the reason, while there is none."""
        if isinstance(found := self._server, Refused):
            raise Refused("store_failed", found.detail, **found.context)
        return found

    def look(self) -> Database:
        """Ask all hosts which server the writer shall connect to. Errors: as `choose`; readers get them too."""
        answers, seat = _ask_all(self._database), self._seat
        try:
            best = choose(
                *(answers, seat.own_file.timelines),
                is_synchronous=seat.is_synchronous,
                is_starting=self.timeline == 0,
            )
        except Exception as error:
            self._server = error if isinstance(error, Refused) else Refused("store_failed", str(error))
            raise
        for one in answers:
            if one.kind == "writable" and one.timeline < best.timeline:
                log.warning(
                    "store.old_primary", host=one.database.host, timeline=one.timeline, used=best.database.host
                )
        if self._server != best.database:
            self._server = Refused("store_failed", f"payagent is connecting to {best.database.host}. Ask again")
        self._found, self.timeline = best.database, best.timeline
        return best.database

    def use(self, system: str, timeline: int) -> None:
        """The writer is connected: keep the timeline on this machine, and let the readers follow."""
        self._seat.own_file.note_timeline(system, timeline)
        self._server = self._found


def hosts_of(database: Database) -> list[Database]:
    """The same database at each host that its URL names. Refused: `config_invalid`."""
    try:
        named = psycopg.conninfo.conninfo_to_dict(database.url)
        lists = {name: str(named[name]).split(",") for name in _LISTS if named.get(name)}
        count = max(map(len, lists.values()), default=1)
        full = [values * (count if len(values) == 1 else 1) for values in lists.values()]
        rows = list(zip(*full, strict=True)) or [()]
    except (psycopg.Error, ValueError) as error:
        raise Refused("config_invalid", f"the hosts in the URL of the database cannot be read: {error}") from None
    return [replace(database, place=dict(zip(lists, row, strict=True))) for row in rows]


def _ask_all(database: Database) -> list[HostAnswer]:
    """Ask all hosts at once. One that does not answer in time is silent."""
    pool = ThreadPoolExecutor(_HOSTS_MAX)
    asked = {pool.submit(_ask, one): one for one in hosts_of(database)}
    wait(asked, LOOK_S)
    pool.shutdown(wait=False)
    why = f"it said nothing for {LOOK_S} s"
    return [one.result() if one.done() else HostAnswer(at, "silent", why=why) for one, at in asked.items()]


def _ask(database: Database) -> HostAnswer:
    try:
        with closing(PostgresqlConnection(database)) as conn:
            started = conn.execute("SELECT pg_postmaster_start_time()::text").fetchone()
            return HostAnswer(database, "writable", conn.timeline(), conn.system(), str(started))
    except sqlite3.Error as error:
        why = " ".join(str(error).split())
    if _READ_ONLY.search(why):
        return HostAnswer(database, "standby", why="it takes no writes")
    return HostAnswer(database, "silent" if _SILENT.search(why) else "refuses", why=why)
