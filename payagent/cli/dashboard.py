"""`payagent dashboard`: a link that opens the dashboard, and the confirmation of its orders.

Never: opens a browser unless it is told to; confirms an order that it has not shown.
"""

from html import escape
from pathlib import Path
from tempfile import mkdtemp

import click

from payagent.cli.options import Connect, example, show_time, talks_to_daemon
from payagent.cli.terminal import Terminal
from payagent.secret_file import make_secret_file


@click.group(
    invoke_without_command=True,
    epilog=example(
        "payagent dashboard", "payagent dashboard --app auditor", "payagent dashboard confirm 7KQ2-M2PX"
    ),
)
@click.option("--app", metavar="NAME", help="Sign in as this app, with its scopes. Default: the token's own.")
@click.option("--open", "opens", is_flag=True, help="Open the link in the browser of this machine.")
@talks_to_daemon
def dashboard(terminal: Terminal, connect: Connect, app: str | None, opens: bool) -> None:
    """Print a link that opens the dashboard once.

    The link works for two minutes. The browser gets the scopes of the token: read shows everything and changes
    nothing, approve shows approvals, operate does what an operator does. On another machine, forward the port
    first (ssh -L 8402:127.0.0.1:8402).
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    answer = connect().post("/v1/dashboard/links", {} if app is None else {"app": app})

    def human() -> None:
        terminal.line(answer["url"])
        terminal.say(
            f"Signs in as {answer['app']} ({', '.join(answer['scopes'])}), once, until"
            f" {show_time(answer['expires_at'])} UTC. Or type the code: {answer['code']}"
        )

    terminal.give(answer, human)
    if opens:
        # everyone on the machine can read the browser's arguments, so they name a private file that leads on
        page = Path(mkdtemp(prefix="payagent-")) / "open.html"
        make_secret_file(
            page, f'<!doctype html><meta http-equiv="refresh" content="0; url={escape(answer["url"])}">'
        )
        click.launch(page.as_uri())


@dashboard.command(epilog=example("payagent dashboard confirm 7KQ2-M2PX"))
@click.argument("code")
@click.option("--yes", is_flag=True, help="Carry it out without asking.")
@talks_to_daemon
def confirm(terminal: Terminal, connect: Connect, code: str, yes: bool) -> None:
    """Show an order of the dashboard, and carry it out.

    The dashboard shows the CODE. It works once, for ten minutes. Compare what the order does with what you meant.
    If you answer no, the order is withdrawn.
    """
    client = connect()
    order = client.get(f"/v1/dashboard/orders/{code}")
    facts = "".join(f"  {fact['name']}: {fact['value']}\n" for fact in order["facts"])
    by = f"  asked by: {order['app']}, signed in since {show_time(order['signed_in_at'])} UTC"
    terminal.say(f"{order['title']}\n{facts}{by}")
    if not yes:
        if not terminal.can_ask:
            raise click.UsageError("nobody can be asked here: nothing was done; add --yes to carry it out")
        if not click.confirm("Carry it out? Answering no cancels it.", err=True):
            client.post(f"/v1/dashboard/orders/{code}/withdraw", {})
            terminal.say("The order is withdrawn. Nothing was done.")
            raise click.Abort
    answer = client.post(f"/v1/dashboard/orders/{code}/confirm", {})
    terminal.give(answer, lambda: terminal.line(f"done: {answer['title']}"))
