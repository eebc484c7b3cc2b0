"""`payagent store`: moves the ledger between a file and PostgreSQL, and makes or migrates the tables there.

Never: changes the ledger that it moves.
"""

import os
from pathlib import Path

import click

from payagent.cli.options import config_option, example, output_options, pass_terminal
from payagent.cli.terminal import Json, Terminal


@click.group(
    epilog=example("payagent store copy --to 'postgresql://owner@db.example/payagent?sslmode=verify-full'")
)
def store() -> None:
    """Move the ledger between a file and PostgreSQL."""


@store.command(
    epilog=example(
        "payagent store copy --to 'postgresql://owner@db.example/payagent?sslmode=verify-full'",
        "payagent store copy --to /var/lib/payagent/ledger.db",
    )
)
@click.option("--to", required=True, metavar="URL|FILE", help="Empty database, or new file.")
@config_option
@output_options
@pass_terminal
def copy(terminal: Terminal, to: str, config: Path | None) -> None:
    """Copy the ledger to PostgreSQL, or from there to a file.

    Stop every daemon of the wallet first. The ledger is checked as by `payagent ledger verify`. Apps, tokens and
    seals stay valid. Each host keeps its signer.json. The old ledger stays as it is. Move it away: a daemon that
    starts on it may pay twice.

    The URL's role must own the tables, or be allowed to make them. Its password is in the file of
    store.password_file, or where PostgreSQL's own programs look: PGPASSFILE or ~/.pgpass.
    """
    from payagent.backup.move import move_to_database, move_to_file
    from payagent.settings.loading import load_settings, read_store_url

    settings = load_settings(config, os.environ)
    is_url = to.startswith("postgresql://")
    if is_url != (settings.store.url is None):
        place = "PostgreSQL (store.url), so give a new file" if is_url else "a file, so give a postgresql:// URL"
        raise click.BadParameter(f"the ledger of this config is on {place}", param_hint="--to")
    with terminal.waiting() as tell:
        if is_url:
            contents, head = move_to_database(settings, read_store_url(to), tell)
        else:
            contents, head = move_to_file(settings, Path(to).absolute(), tell)
    data: Json = {
        "to": to,
        "head": str(head),
        "payments": contents.payments,
        "open_payments": contents.open_payments,
    }
    terminal.give_pairs(data, {"open_payments": "not settled"})
    terminal.say("The old ledger is unchanged. Move it away before you start a daemon on the copy.")


@store.command(
    epilog=example(
        "payagent store migrate --daemon-role payagent \\",
        "  --url 'postgresql://owner@db.example/payagent?sslmode=verify-full'",
    )
)
@click.option("--url", required=True, metavar="URL", help="The database, with the role that shall own the tables.")
@click.option("--daemon-role", metavar="NAME", help="Let this role do what a daemon does, and no more.")
@output_options
@pass_terminal
def migrate(terminal: Terminal, url: str, daemon_role: str | None) -> None:
    """Make the tables in a database, or update them.

    Run it as a role that the daemons do not use: an owner can switch off the triggers that guard the ledger. Its
    password is where PostgreSQL's own programs look: PGPASSFILE or ~/.pgpass.

    Daemons may run meanwhile. While one is of a payagent that does not know a change, nothing is changed.
    """
    from payagent.backup.move import make_tables
    from payagent.settings.loading import read_store_url

    made = make_tables(read_store_url(url), daemon_role)
    said = "made the tables, or brought them up to date" if made else "the tables are up to date"
    terminal.give({"made": made}, lambda: terminal.line(said))
