"""The schema on PostgreSQL: made from the tables and the guards of SQLite, so no rule is written twice.

INTEGER is BIGINT, BLOB is BYTEA, TEXT is ordered by its bytes. JSON that queries look into is `json`, which keeps
its text. A table without a number of its own has a last column `rowid`. Row numbers go on from the highest, never
from a sequence: a rollback would leave a gap.
Guards are triggers as on SQLite. One more keeps the tables of record from TRUNCATE. The fence is asked a second
time here: a trigger refuses the row of an account that the session's daemon (`payagent.holder`) does not hold.

Never: reads or writes a row; makes the views, which are for people who read the file.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from payagent.store.db.schema import tables_now
from payagent.store.db.triggers import KEPT, TRIGGERS, UNBALANCED, Trigger

if TYPE_CHECKING:
    from payagent.store.db.postgresql.connection import PostgresqlConnection

_TYPES = {"INTEGER": "BIGINT", "BLOB": "BYTEA", "TEXT": 'TEXT COLLATE "C"'}
_JSON = {("events", "detail"), ("invoices", "outputs"), ("payments", "outputs")}
_COUNTED_BY_US = {"boot", "entries", "events", "seals"}
"""Tables whose every INSERT gives the number."""

_AS_ON_SQLITE = (
    "CREATE FUNCTION instr(text, text) RETURNS integer LANGUAGE sql IMMUTABLE AS 'SELECT strpos($1, $2)'",
    "CREATE FUNCTION json_valid(json) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT TRUE'",
    "CREATE FUNCTION json_each(text) RETURNS TABLE (value text) LANGUAGE sql IMMUTABLE STRICT ROWS 4 AS "
    "'SELECT json_array_elements_text($1::json)'",
    "CREATE FUNCTION strftime(text, bigint, text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ "
    "SELECT to_char(to_timestamp($2) AT TIME ZONE 'UTC', replace(replace(replace(replace(replace("
    """$1, 'T', '"T"'), '%Y', 'YYYY'), '%m', 'MM'), '%d', 'DD'), '%H', 'HH24')) $$""",
)
"""The parts of SQLite that the store's queries use and PostgreSQL lacks."""

_LAST_OF_ACCOUNT = "CREATE INDEX attempts_of_account ON attempts(account, rowid)"
"""Else all attempts would be read for an account that never signed. In a file there is one account."""

_TRUNCATED = "payagent_no_truncate"
_GATED = "payagent_wait_for_gate"

_OF_ATTEMPT = "(SELECT account FROM attempts WHERE tx_id = {row}.tx_id)"
FENCED = {
    "attempts": "{row}.account",
    "block_observations": _OF_ATTEMPT,
    "channels": "{row}.account",
    "channel_calls": "(SELECT account FROM channels WHERE id = {row}.channel_id)",
    "channel_steps": "(SELECT account FROM payments WHERE id = {row}.payment_id)",
    "external_spends": "{row}.account",
    "holds": "(SELECT account FROM payments WHERE id = {row}.payment_id)",
    "payments": "{row}.account",
    "postings": "CASE WHEN {row}.account IN ('wallet', 'held') THEN 0 "
    "WHEN {row}.account LIKE 'wallet/%' OR {row}.account LIKE 'held/%' "
    "THEN CAST(substr({row}.account, instr({row}.account, '/') + 1) AS INTEGER) END",
    "prepaid_pools": "{row}.account",
    "reservations": "(SELECT account FROM utxos WHERE ref = {row}.ref)",
    "submissions": _OF_ATTEMPT,
    "utxos": "{row}.account",
}
"""Every table whose rows are an account's, and SQL of a row's account; NULL: the row is nobody's.

SQLite reads it too: the simulator has the same fence.
"""

_ANYBODYS = ("delivery", "updated_at_ms")
"""The columns of a payment that any daemon may change: a client may report a delivery to each."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as SQLite has it. `columns`: (name, type), in order. `number`: the column that numbers its rows."""

    name: str
    columns: tuple[tuple[str, str], ...]
    body: str
    number: str | None

    @property
    def is_rowid(self) -> bool:
        return self.number == "rowid"


@cache
def tables() -> dict[str, Table]:
    """The tables by name."""
    found = {}
    for name, body, options in re.findall(
        r'CREATE TABLE "?(\w+)"? \((.*?)\n?\) STRICT(.*?);', tables_now(), re.DOTALL
    ):
        # ALTER TABLE puts a column on the line of the one before it
        body = re.sub(r", (\w+ (?:INTEGER|TEXT|BLOB)\b)", r",\n  \1", body)
        columns = tuple(re.findall(r"^  (\w+) (INTEGER|TEXT|BLOB)\b", body, re.MULTILINE))
        own = re.search(r"^  (\w+) INTEGER PRIMARY KEY", body, re.MULTILINE)
        number = own[1] if own else None if "WITHOUT ROWID" in options else "rowid"
        found[name] = Table(name, columns, body, number)
    return found


def statements() -> Iterator[str]:
    """Everything that makes an empty ledger, in order."""
    yield from _AS_ON_SQLITE
    references = []
    for table in tables().values():
        body, own = _without_references(table)
        references += own
        yield f"CREATE TABLE {table.name} ({_body(table, body)}\n)"
    for index in re.findall(r"CREATE (?:UNIQUE )?INDEX .*?;", tables_now(), re.DOTALL):
        yield _expression(index.rstrip(";").replace("type = 'approval.asked',", "(type = 'approval.asked'),"))
    yield _LAST_OF_ACCOUNT
    yield from references
    yield from guards()


def guards() -> Iterator[str]:
    """Everything that watches over the rows of today's tables."""
    for table in tables().values():
        if table.number is not None and table.name not in _COUNTED_BY_US:
            yield from _numbering(table)
    for trigger in TRIGGERS:
        yield from guard(trigger)
    for name in FENCED:
        yield from fence(name)
    yield _no_truncate()
    yield _wait_for_gate()
    for name in sorted(KEPT):
        yield _truncate_trigger(name)
        yield _gate_trigger(name)


def parents(table: Table) -> set[str]:
    """The tables whose rows must be there before a row of this one that refers to them."""
    _, references = _without_references(table)
    found = (re.search(r" REFERENCES (\w+)", one) for one in references if "DEFERRED" not in one)
    return {one[1] for one in found if one is not None}


def create(conn: "PostgresqlConnection") -> None:
    """Make the schema in an empty database, inside a transaction."""
    for statement in statements():
        conn.execute(statement)


_GUARDING = """
SELECT DISTINCT t.tgfoid::regproc::text FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace
"""


def drop_guards(conn: "PostgresqlConnection") -> None:
    """Drop all guards, inside the transaction that makes those of `guards`."""
    for (function,) in conn.execute(_GUARDING).fetchall():
        conn.execute(f"DROP FUNCTION {function} CASCADE")


def _without_references(table: Table) -> tuple[str, list[str]]:
    """The columns without foreign keys, and these as statements: a table may refer to a later one."""
    found = []

    def alone(match: re.Match[str]) -> str:
        columns = match["columns"] or f"({match['column']})"
        found.append(f"ALTER TABLE {table.name} ADD FOREIGN KEY {columns} {match['to'].strip()}")
        return match["before"] or ""

    pattern = (
        r"(?:(?P<before>  (?P<column>\w+) [^,\n]*?)|\n  FOREIGN KEY (?P<columns>\([^)]*\)))"
        r"(?P<to> REFERENCES \w+\([^)]*\)(?: DEFERRABLE INITIALLY DEFERRED)?)(?(columns),)"
    )
    return re.sub(pattern, alone, table.body), found


def _body(table: Table, body: str) -> str:
    for name, kind in table.columns:
        own = _TYPES[kind]
        if (table.name, name) in _JSON:
            own = f"JSON CHECK ({name}::text::jsonb IS NOT NULL)"  # jsonb refuses what `->>` could not read
        body = re.sub(rf"^  {name} {kind}\b", f'  "{name}" {own}', body, flags=re.MULTILINE)
    body = re.sub(r"\bwindow\b(?!\")", '"window"', body)
    return _expression(body.rstrip()) + (",\n  rowid BIGINT NOT NULL UNIQUE" if table.is_rowid else "")


def _expression(sql: str) -> str:
    """A condition as PostgreSQL writes it."""
    return re.sub(r"\bIS NOT (?!NULL\b|DISTINCT\b)", "IS DISTINCT FROM ", sql)


def _numbering(table: Table) -> Iterator[str]:
    """Number a row that comes without a number. The name makes it run before the guards."""
    name = f"{table.name}_count"
    yield _function(
        name,
        f"  IF NEW.{table.number} IS NULL THEN\n"  # noqa: S608  our own names
        f"    NEW.{table.number} := (SELECT COALESCE(MAX({table.number}), 0) + 1 FROM {table.name});\n"
        "  END IF;\n  RETURN NEW;\n",
    )
    yield f"CREATE TRIGGER {name} BEFORE INSERT ON {table.name} FOR EACH ROW EXECUTE FUNCTION {name}()"


_BROKEN = "23514"
"""The code with which a guard refuses a row: that of a broken CHECK."""


def guard(trigger: Trigger) -> tuple[str, str]:
    """The function and the trigger that refuse a change as `trigger` does on SQLite."""
    change, _, table = trigger.on.partition(" ON ")
    checks = "".join(
        f"  IF {_condition(table, one.when)} THEN\n"
        f"    RAISE EXCEPTION USING ERRCODE = '{_BROKEN}', MESSAGE = '{one.message}';\n  END IF;\n"
        for one in trigger.guards
    )
    body = checks + ("  RETURN OLD;\n" if change == "DELETE" else "  RETURN NEW;\n")
    return _function(trigger.name, body), _trigger(trigger)


def fenced_changes(table: str) -> tuple[str, ...]:
    """The changes of a row that the fence asks about."""
    columns = [column for column, _ in tables()[table].columns if column not in _ANYBODYS]
    update = f"UPDATE OF {', '.join(columns)}" if table == "payments" else "UPDATE"
    return ("INSERT", update) if table in KEPT else ("INSERT", "DELETE", update)


def fence(table: str) -> tuple[str, str]:
    """The function and the trigger that refuse a row of an account which this session's daemon does not hold.

    FOR SHARE waits for a takeover that is being committed, and then reads the row again.
    """
    name, account = f"{table}_fence", FENCED[table]
    body = (
        f"  IF TG_OP = 'DELETE' THEN\n    own := {account.format(row='OLD')};\n"
        f"  ELSE\n    own := {account.format(row='NEW')};\n  END IF;\n"
        "  IF own IS NOT NULL THEN\n"
        "    PERFORM 1 FROM accounts WHERE account = own AND holder = current_setting('payagent.holder', TRUE) "
        "FOR SHARE;\n"
        f"    IF NOT FOUND THEN\n      RAISE EXCEPTION USING ERRCODE = '{_BROKEN}', "
        "MESSAGE = 'this daemon does not hold the account';\n    END IF;\n  END IF;\n"
        "  IF TG_OP = 'DELETE' THEN\n    RETURN OLD;\n  END IF;\n  RETURN NEW;\n"
    )
    return (
        _function(name, body, "DECLARE own bigint;\n"),
        f"CREATE TRIGGER {name} BEFORE {' OR '.join(fenced_changes(table))} ON {table} "
        f"FOR EACH ROW EXECUTE FUNCTION {name}()",
    )


def _condition(table: str, when: str) -> str:
    """A guard's condition on PostgreSQL: sums of integers have no highest value, and JSON is compared as text."""
    if when == "1":
        return "TRUE"
    text = _expression(when).replace(UNBALANCED, "SUM(units) <> 0")
    for name in (name for of, name in _JSON if of == table):
        text = re.sub(rf"\b(NEW|OLD)\.{name}\b", r"\g<0>::text", text)
    return re.sub(r"\browid\b", str(tables()[table].number), text)


def _function(name: str, body: str, declared: str = "") -> str:
    return (
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$function$\n{declared}BEGIN\n{body}END\n$function$"
    )


def _trigger(trigger: Trigger) -> str:
    change, _, table = trigger.on.partition(" ON ")
    return (
        f"CREATE TRIGGER {trigger.name} BEFORE {change} ON {table} FOR EACH ROW EXECUTE FUNCTION {trigger.name}()"
    )


def _no_truncate() -> str:
    return _function(_TRUNCATED, f"  RAISE EXCEPTION USING ERRCODE = '{_BROKEN}', MESSAGE = 'rows are kept';\n")


def _wait_for_gate() -> str:
    """A daemon has the gate already. Others add no row during its commit, which would seal the row as its own."""
    return _function(_GATED, "  PERFORM 1 FROM gate FOR UPDATE;\n  RETURN NULL;\n")


def _gate_trigger(table: str) -> str:
    return f"CREATE TRIGGER {table}_gate BEFORE INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION {_GATED}()"


def _truncate_trigger(table: str) -> str:
    return (
        f"CREATE TRIGGER {table}_truncate BEFORE TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {_TRUNCATED}()"
    )


_PRESENT = """
SELECT t.tgname, pg_get_triggerdef(t.oid, TRUE), t.tgenabled::text, pg_get_functiondef(t.tgfoid)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace
"""


def missing_guards(conn: "PostgresqlConnection") -> list[str]:
    """Names of guards that are missing, altered, or disabled."""
    (own_schema,) = conn.execute("SELECT current_schema()::text").fetchone() or ("",)
    present = {name: tuple(rest) for name, *rest in conn.execute(_PRESENT)}
    expected = {one.name: guard(one) for one in TRIGGERS}
    expected |= {f"{name}_fence": fence(name) for name in FENCED}
    expected |= {f"{name}_truncate": (_no_truncate(), _truncate_trigger(name)) for name in sorted(KEPT)}
    expected |= {f"{name}_gate": (_wait_for_gate(), _gate_trigger(name)) for name in sorted(KEPT)}
    return [
        name
        for name, (function, trigger) in expected.items()
        if present.get(name) != (trigger, "O", _stored(function, own_schema))
    ]


def _stored(function: str, own_schema: str) -> str:
    """A function's text as PostgreSQL shows it."""
    name, _, body = function.removeprefix("CREATE FUNCTION ").partition("() RETURNS trigger LANGUAGE plpgsql AS ")
    return f"CREATE OR REPLACE FUNCTION {own_schema}.{name}()\n RETURNS trigger\n LANGUAGE plpgsql\nAS {body}\n"
