"""`payagent pause` and `payagent resume`: stop all signing, and allow it again.

May import: click, core, cli.
Never: decides what is signed (the daemon does).
"""

import click

from payagent.cli.options import Connect, example, talks_to_daemon
from payagent.cli.terminal import Terminal


@click.command(epilog=example('payagent pause --reason "the token of bot leaked"'))
@click.option("--reason", default="", metavar="TEXT", help="Why: it is recorded, and told to who is refused.")
@talks_to_daemon
def pause(terminal: Terminal, connect: Connect, reason: str) -> None:
    """Stop all signing, until `payagent resume`: no restart ends it.

    Once the command returns nothing is signed any more: no payment, no replacement, no cancel, no transfer. What
    was signed before is sent and followed as ever, and may still come into a block. Where it was paused already,
    the earlier pause stands with its reason, and that is said.
    """
    with connect() as link:
        answer = link.post("/v1/pause", {"reason": reason} if reason else {})
    why = f": {answer['reason']}" if answer["reason"] else ""
    terminal.give(answer, lambda: terminal.line(f"Paused since {answer['since']} by {answer['by']}{why}"))
    if answer.get("already"):
        lost = "; the reason given now is in the daemon's log alone" if reason else ""
        terminal.say(f"It was paused already, by {answer['by']}, and that pause stands{lost}.")


@click.command(epilog=example("payagent resume"))
@talks_to_daemon
def resume(terminal: Terminal, connect: Connect) -> None:
    """Sign again. What was held before the pause and has time left is signed now."""
    with connect() as link:
        answer = link.post("/v1/resume", {})
        still = link.unsigned_because()
    terminal.give(answer, lambda: terminal.line("The pause is over." if still else "payagent signs."))
    for reason in still:
        terminal.say(f"Still not signing: {reason}")
