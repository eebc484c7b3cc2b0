"""`payagent pause` and `payagent resume`: stop all signing, and allow it again.

May import: click, core, cli.
Never: decides what is signed (the daemon does).
"""

import click

from payagent.cli.options import Connect, example, talks_to_daemon
from payagent.cli.terminal import Terminal


@click.command(epilog=example('payagent pause --reason "the token of bot leaked"'))
@click.option("--reason", default="", metavar="TEXT", help="Reason, recorded and shown in refusals.")
@talks_to_daemon
def pause(terminal: Terminal, connect: Connect, reason: str) -> None:
    """Stop all signing until `payagent resume`.

    When the command returns, payagent signs no payment, replacement, cancel or transfer. What was signed before is
    still submitted and may still get into a block. A restart does not end the pause. If payagent is already
    paused, the earlier pause and its reason stay.
    """
    with connect() as link:
        answer = link.post("/v1/pause", {"reason": reason} if reason else {})
    why = f": {answer['reason']}" if answer["reason"] else ""
    terminal.give(answer, lambda: terminal.line(f"Paused since {answer['since']} by {answer['by']}{why}"))
    if answer.get("already"):
        lost = "; the new reason is only in the daemon's log" if reason else ""
        terminal.say(f"It was already paused by {answer['by']}, and that pause stays{lost}.")


@click.command(epilog=example("payagent resume"))
@talks_to_daemon
def resume(terminal: Terminal, connect: Connect) -> None:
    """Allow signing again. Payments that are held and have time left are signed now."""
    with connect() as link:
        answer = link.post("/v1/resume", {})
        reasons = link.unsigned_because()
    terminal.give(answer, lambda: terminal.line("The pause is over." if reasons else "payagent signs again."))
    for reason in reasons:
        terminal.say(f"Still not signing: {reason}")
