"""Which of the servers that `store.url` names is used: all are asked side by side before each connection.

An old primary that comes back after a failover takes writes again, on a lower timeline than the new primary's. A
daemon that commits to it may pay what was paid already. `choose` has the rules. The writer's thread looks. The
readers use the server that it found.

Never: commits; waits for a host to come back.
"""

import re
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, Literal

import psycopg.conninfo
import structlog

from payagent.core.problems import Refused
from payagent.store.db.daemon_file import DAEMON_FILE, DaemonFile
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.connection import Database, PostgresqlConnection, parameters_of
from payagent.store.db.postgresql.server import require_newest_timeline

ANSWER_S = 5
"""How long the hosts have to answer. One whose processes are stopped accepts a connection and says nothing."""

_LISTS = ("host", "hostaddr", "port")
"""The parameters of a URL that have a value for each host, or one for all."""

_NAMES = re.compile(r'"[^"]*"|host: \S+')
"""In libpq's errors, names that a person gave. They may contain any word."""

_SILENT = re.compile(
    r"Is the server running|time(d )?out|resolve|translate|o route|nreachable|is down|closed the connection|"
    r"reset by peer|Broken pipe|EOF|eof|no answer|the database system is|too many clients|connection slots|"
    r"terminating"
)
"""In the errors of a server that is away, starts or stops. libpq's own are English. Any other is a refusal."""

_ASK = """
SELECT current_setting('transaction_read_only') = 'on',
    CASE WHEN pg_is_in_recovery() THEN greatest(min_recovery_end_timeline, timeline_id)
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
    system_identifier::text, pg_postmaster_start_time()::text
FROM pg_control_recovery(), pg_control_checkpoint(), pg_control_system()
"""
"""A standby's timeline may lag behind the one that it follows; it is never ahead of it."""

log = structlog.get_logger("payagent.store")


@dataclass(frozen=True, slots=True)
class HostAnswer:
    """What a host answered, and `why` if it does not take this daemon's writes.

    `standby`: it takes no writes, as a standby or by its settings. `silent`: it cannot be reached, starts or
    stops, or has not answered in time. `refuses`: by TLS, authentication or rights. `system`: the identifier of
    its data. `started`: when, to the microsecond. With `system` it tells whether two names lead to one server.
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
    | no host takes writes, one is silent, a daemon that starts | wait for that one |
    | no host takes writes | sqlite3.OperationalError |
    | servers with different data take writes | `config_invalid` |
    | two servers take writes on the highest timeline that takes writes | `config_invalid` |
    | a standby is on a higher timeline | wait for it |
    | all answer, and that timeline is lower than the recorded one | `config_invalid` |
    | all answer | the server on that timeline |
    | one is silent, and the timeline is higher than the recorded one | the same |
    | it is the recorded one, or none is recorded; a synchronous daemon | the same |
    | any other | wait for the silent ones |

    A daemon that runs takes a host that refuses for one that is silent. Waiting is `store_failed`, and
    `waits_for` names the hosts.
    """
    if is_starting and (refusing := [one for one in answers if one.kind == "refuses"]):
        raise Refused(
            "store_failed",
            f"{refusing[0].database.host} of store.url refuses this daemon: {refusing[0].why}. It may be the "
            "primary, so nothing was changed. Let the daemon in, or take the host out of store.url",
        )
    away = [one for one in answers if one.kind in ("silent", "refuses")]
    writable = list({(one.system, one.started): one for one in answers if one.kind == "writable"}.values())
    if not writable:
        reasons = "; ".join(f"{one.database.host}: {one.why}" for one in answers)
        if is_starting and away:
            told = "no host of store.url takes writes, so nothing is committed. Start the primary"
            raise _wait_for(away, f"{told}. {reasons}")
        raise sqlite3.OperationalError(f"no host takes writes. {reasons}")
    best = _primary(writable)
    known = recorded.get(best.system, 0)
    ahead = [one for one in answers if one.system == best.system and one.timeline > best.timeline]
    if ahead:
        raise _wait_for(
            ahead,
            f"{ahead[0].database.host} of store.url takes no writes, but its timeline is newer than that of "
            f"{best.database.host}, an old primary that may lack payments. Nothing is committed meanwhile. Stop "
            f"{best.database.host}, and start the newest primary",
        )
    if away and (best.timeline < known or not (is_synchronous or best.timeline > known > 0)):
        reasons = ". ".join(f"{one.database.host} of store.url does not answer: {one.why}" for one in away)
        raise _wait_for(
            away,
            f"{reasons}. A newer primary than {best.database.host} may be among them, so nothing is committed "
            "meanwhile. Start each server that does not answer. One that was never promoted can also be taken out "
            "of store.url; then restart payagent",
        )
    require_newest_timeline(best.timeline, known, best.system, {})
    return best


def _primary(writable: Sequence[HostAnswer]) -> HostAnswer:
    """The server on the highest timeline. Refused: `config_invalid`, if another one may have payments too."""
    best = max(writable, key=lambda one: one.timeline)
    for one in writable:
        if one is not best and (one.system != best.system or one.timeline == best.timeline):
            raise Refused(
                "config_invalid",
                f"{best.database.host} and {one.database.host} both take writes, and neither replaces the other. "
                "Payments may be in either, so nothing was changed. Stop the one that should not",
            )
    return best


def _wait_for(hosts: Sequence[HostAnswer], why: str) -> Refused:
    return Refused("store_failed", why, waits_for=", ".join(sorted(one.database.host for one in hosts)))


def newest(url: str, password: str | None, folder: Path | None, *, is_copy: bool) -> Database:
    """The server that a command beside the daemons uses. Errors: as `choose`; nothing is waited for.

    `folder`: the data folder with what this machine recorded. `is_copy`: the command copies or changes the whole
    ledger. It is refused where an asynchronous daemon would wait.
    """
    recorded = DaemonFile(folder and folder / DAEMON_FILE).timelines
    answers = _ask_all(Database(url, password))
    return choose(answers, recorded, is_synchronous=not is_copy, is_starting=False).database


class Hosts:
    """The hosts of `store.url`, for one daemon: its writer chooses a server, and its readers follow.

    `timeline`: of the server that the writer was told to connect to; 0 before the first one.
    """

    def __init__(self, database: Database, seat: Seat | None) -> None:
        self._database = database
        self._seat = seat or Seat("", "", {})
        self.timeline = 0
        self._generation = 0
        self._found = database
        self._server: Database | Refused = Refused("store_failed", "the hosts were not asked yet")

    @property
    def server(self) -> Database:
        """The server that the writer uses. Refused: `store_failed`, with the reason, while there is none."""
        if isinstance(found := self._server, Refused):
            raise Refused("store_failed", found.detail, **found.context)
        return found

    def choose_server(self) -> Database:
        """Ask all hosts which server the writer shall connect to. Errors: as `choose`."""
        answers, seat = _ask_all(self._database), self._seat
        best = choose(
            *(answers, seat.own_file.timelines),
            is_synchronous=seat.is_synchronous,
            is_starting=self.timeline == 0,
        )
        for one in answers:
            if one.kind == "writable" and one.timeline < best.timeline:
                log.warning(
                    "store.old_primary", host=one.database.host, timeline=one.timeline, used=best.database.host
                )
        self._server = Refused("store_failed", f"payagent is connecting to {best.database.host}. Ask again")
        self._found, self.timeline = best.database, best.timeline
        return best.database

    def use(self, system: str, timeline: int) -> None:
        """The writer is connected: keep the timeline on this machine, and let the readers follow.

        They connect again, too: the same name may lead to another server now.
        """
        self._seat.own_file.note_timeline(system, timeline)
        self._generation += 1
        self._server = replace(self._found, generation=self._generation)

    def refuse(self, error: Exception) -> Refused:
        """The writer uses no server. Returns why, as `store_failed`, which the readers get too."""
        detail, context = (error.detail, error.context) if isinstance(error, Refused) else (str(error), {})
        self._server = Refused("store_failed", detail, **context)
        return self._server


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
    """Ask all hosts at once. One that does not answer in time is silent; no thread of it keeps a process alive."""
    answers = [HostAnswer(at, "silent", why=f"no answer in {ANSWER_S} s") for at in hosts_of(database)]
    for one in answers:
        parameters_of(one.database)

    def ask(number: int) -> None:
        answers[number] = _ask(answers[number].database)

    threads = [Thread(target=ask, args=(number,), daemon=True) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    until = time.monotonic() + ANSWER_S
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    return list(answers)


def _ask(database: Database) -> HostAnswer:
    anyone = replace(database, place={**database.place, "target_session_attrs": "any"})
    try:
        with closing(PostgresqlConnection(anyone, patience_s=ANSWER_S)) as conn:
            row: Any = conn.execute(_ASK).fetchone()
    except sqlite3.Error as error:
        why = " ".join(str(error).split())
        return HostAnswer(database, failure_kind(why), why=why)
    is_read_only, timeline, system, started = row
    if is_read_only:
        return HostAnswer(database, "standby", timeline, system, started, "it takes no writes")
    return HostAnswer(database, "writable", timeline, system, started)


def failure_kind(why: str) -> Literal["silent", "refuses"]:
    """What the text of an error says of a host."""
    return "silent" if _SILENT.search(_NAMES.sub("", why)) else "refuses"
