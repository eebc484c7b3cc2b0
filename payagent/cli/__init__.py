"""cli: the `payagent` command. It parses arguments, calls the daemon over HTTP and shows the answer.

Start at `main`, which has the command tree. Imports other than core and click belong inside the function that
needs them, so that `--help` costs no more than Python and click.

Exit codes: 0 ok, 1 bug, 2 usage, 3 payment void, rejected or expired, 4 chain or merchant unreachable, 5 locked or
unauthorised, 6 refused by a limit or the policy, 7 not enough funds, 8 still pending, 10 dry run ok, 130
interrupted, 141 stdout was closed early (as by `| head`; shells report SIGPIPE with the same code).

Never: reaches into the wallet, the chain or the store; decides about a payment.
"""

import os
import sys
from collections.abc import Sequence

import click

from payagent.cli.terminal import (
    Json,
    ProblemError,
    Terminal,
    as_shown,
    describe,
    standard_terminal,
)
from payagent.core.problems import PROBLEMS, Refused

USAGE, INTERRUPTED, READER_GONE = 2, 130, 141
COMPLETE = "_PAYAGENT_COMPLETE"  # the variable of click's completion scripts: a shell asks for completions
_FORCES = {"--human": False, "--json": True}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the process's arguments, and exit with its code."""
    try:
        terminal = standard_terminal()
        code = run(sys.argv[1:] if arguments is None else arguments, terminal)
        terminal.stdout.flush()
    except BrokenPipeError:
        code = READER_GONE
        _silence()
    sys.exit(code)


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run the command. Every error becomes one message and one exit code.

    Only `BrokenPipeError` is passed on: nobody reads the output any more.
    """
    try:
        return _invoke(arguments, terminal)
    except Refused as refused:
        return terminal.complain(describe(refused))
    except ProblemError as error:
        return terminal.complain(as_shown(error.problem))
    except click.ClickException as error:
        if terminal.forced_json is None:  # click stopped before it read the option
            terminal.forced_json = next((_FORCES[one] for one in arguments if one in _FORCES), None)
        _complain_of_usage(terminal, error)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        terminal.say("\ninterrupted")  # after the ^C that the terminal shows
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001  nobody above tells the user
        return terminal.complain(_bug(error))


def _invoke(arguments: Sequence[str], terminal: Terminal) -> int:
    """Do what click's own `main` does. That one would exit with 1 when stdout is closed early.

    A command that returns no exit code ends with 0.
    """
    from payagent.cli.main import payagent

    if os.environ.get(COMPLETE):
        payagent.main(prog_name="payagent")  # answers the shell and exits
    try:
        with payagent.make_context("payagent", list(arguments), obj=terminal) as context:
            result = payagent.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return result if isinstance(result, int) else 0


def _silence() -> None:
    """Send what is left in both streams to /dev/null: Python flushes them once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)


def _complain_of_usage(terminal: Terminal, error: click.ClickException) -> None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "payagent"
    is_bare = isinstance(error, click.exceptions.NoArgsIsHelpError)
    if is_bare and not terminal.is_json:
        terminal.say(error.format_message())  # the help
    elif terminal.is_json:
        problem: Json = {
            "code": "usage",
            "title": "Invalid usage",
            "detail": "no command given" if is_bare else error.format_message(),
            "fix": f"See `{path} --help`.",
            "exit_code": USAGE,
        }
        terminal.complain(problem)
    else:
        terminal.say_error(error.format_message())
        terminal.say(f"  next: see `{path} --help`")


def _bug(error: Exception) -> Json:
    """Where it happened, never the exception's text: that may hold a secret."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""  # noqa: PTH119
    return describe(Refused("internal_error", f"{type(error).__name__}{where}")) | {
        "exit_code": PROBLEMS["internal_error"].exit_code
    }
