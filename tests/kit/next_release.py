"""`python -m kit.next_release …`: the command of a later payagent, which adds a table and a column."""

from collections.abc import Iterator
from contextlib import contextmanager

from payagent.core import version
from payagent.store.db import schema
from payagent.store.db.postgresql import schema as postgresql_schema

NAME, VERSION = "m999_later", "999.0.0"
OLDER = schema.newest_migration()
COLUMN = "ALTER TABLE readiness ADD COLUMN later TEXT"
CHANGE = schema.Migration(
    f"CREATE TABLE later (\n  one INTEGER PRIMARY KEY\n) STRICT;\n{COLUMN}",
    f"CREATE TABLE later (one BIGINT PRIMARY KEY);\n{COLUMN}",
)


@contextmanager
def upgraded(change: schema.Migration = CHANGE) -> Iterator[None]:
    """This process is of the later release, with this migration."""
    schema.MIGRATIONS[NAME] = change
    postgresql_schema.tables.cache_clear()
    try:
        yield
    finally:
        del schema.MIGRATIONS[NAME]
        postgresql_schema.tables.cache_clear()


if __name__ == "__main__":
    version.VERSION = VERSION
    from payagent.cli import main

    with upgraded():
        main()
