"""cli: the command `payagent`. Reads arguments, talks to the daemon over HTTP, shows what came back.

May import: click, core, settings, the rooms that commands start (daemon, devnet, demo, init, doctor) - everything
but core and click inside the function that needs it, so that `--help` costs no more than Python and click. Never:
reaches into the wallet, the chain or the store; decides about a payment.

Exit codes: 0 ok, 1 bug, 2 usage, 3 payment void, rejected or expired, 4 chain or merchant
unreachable, 5 locked or unauthorised, 6 refused by a limit or the policy, 7 not enough funds, 8 still pending,
10 dry run ok, 130 interrupted.
"""

import os
import sys
import traceback
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
from payagent.core.problem import PROBLEMS, Refused

USAGE, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the process's arguments, and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments, standard_terminal()))


def run(arguments: Sequence[str], terminal: Terminal) -> int:
    """Run the command; every way in which it can end becomes one message and one exit code."""
    from payagent.cli.commands import payagent

    try:
        return _exit_code(payagent.main(list(arguments), "payagent", standalone_mode=False, obj=terminal))
    except Refused as refused:
        terminal.complain(describe(refused))
        return refused.problem.exit_code
    except ProblemError as error:
        problem = as_shown(error.problem)
        terminal.complain(problem)
        return _exit_code(problem["exit_code"])
    except click.ClickException as error:
        _complain_of_usage(terminal, error)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        terminal.say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # the reader went away (`| head`): nothing to say, and nothing more to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001  the last one who can tell the user
        terminal.complain(_bug(error))
        return 1


def _exit_code(result: object) -> int:
    return result if isinstance(result, int) else 0


def _complain_of_usage(terminal: Terminal, error: click.ClickException) -> None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "payagent"
    if terminal.is_json:
        problem: Json = {
            "code": "usage",
            "title": "The command is not understood",
            "detail": error.format_message(),
            "fix": f"See `{path} --help`.",
            "exit_code": USAGE,
        }
        terminal.complain(problem)
    else:
        terminal.say(f"error: {error.format_message()}\n  next: see `{path} --help`")


def _bug(error: Exception) -> Json:
    """Where it happened, never with what: an exception's text may hold a secret."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""  # noqa: PTH119
    return describe(Refused("internal_error", f"{type(error).__name__}{where}")) | {
        "exit_code": PROBLEMS["internal_error"].exit_code
    }
