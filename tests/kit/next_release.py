"""`python -m kit.next_release …`: the command of a later payagent, which adds a table that nobody uses."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlite_utils import Database

from payagent.core import version
from payagent.store.db import schema
from payagent.store.db.postgresql import migrate

NAME, VERSION = "m999_later", "999.0.0"
OLDER = schema.newest_migration()


def m999_later(db: Database) -> None:
    db.execute("CREATE TABLE later (one INTEGER PRIMARY KEY) STRICT")


@contextmanager
def upgraded(change: str = "CREATE TABLE later (one BIGINT PRIMARY KEY)") -> Iterator[None]:
    """This process is of the later release. `change`: its migration on PostgreSQL."""
    schema.migrations()(m999_later)
    schema._names.cache_clear()
    before, migrate.CHANGES = migrate.CHANGES, {**migrate.CHANGES, NAME: change}
    try:
        yield
    finally:
        migrate.CHANGES = before
        schema.migrations._migrations.pop()
        schema._names.cache_clear()


if __name__ == "__main__":
    version.VERSION = VERSION
    from payagent.cli import main

    with upgraded():
        main()
