"""`payagent doctor`: checks everything that a payment needs, and says how to fix problems.

Never: changes anything.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from payagent.cli.options import config_option, example, output_options, pass_terminal
from payagent.cli.terminal import Json, Terminal, Tone
from payagent.core.problems import Refused

if TYPE_CHECKING:
    from payagent.doctor.check_result import CheckResult
    from payagent.settings.schema import Settings

_MARKS: Mapping[tuple[bool, bool], tuple[str, Tone]] = {
    (True, False): ("ok  ", "ok"),
    (True, True): ("warn", "warning"),
    (False, False): ("FAIL", "error"),
}
"""How a check is marked, by whether it is ok, and whether it is a warning."""
_PROVIDER_FIRST = (
    "Fix the provider first. If you edited the config, restart the daemon. Otherwise it pays again by itself."
)


@click.command(epilog=example("payagent doctor --json"))
@config_option
@output_options
@pass_terminal
def doctor(terminal: Terminal, config: Path | None) -> int:
    """Check everything that a payment needs.

    It checks config, files, keystore, ledger, clock, providers and daemon, and changes nothing. For failed
    checks it says what to do. A warning means: it works, but could be safer, or nothing can be paid yet. Exit code
    0 if no check failed, else that of the first failure.
    """
    from payagent.settings.config_file import config_paths, find_config
    from payagent.settings.loading import load_settings

    path = find_config(config, os.environ)
    findings = _run_checks(load_settings(path, os.environ), path, config_paths(config, os.environ))
    data: list[Json] = [_as_json(item) for item in findings]
    terminal.give(
        {"ok": all(item.problem is None for item in findings), "checks": data}, lambda: _show(terminal, data)
    )
    return next((item.problem.problem.exit_code for item in findings if item.problem is not None), 0)


def _run_checks(settings: "Settings", config: Path, looked_for: list[Path]) -> "list[CheckResult]":
    import asyncio

    from payagent.cli.daemon_client import OperatorClient
    from payagent.doctor.advice import check_choices
    from payagent.doctor.chain import check_chain
    from payagent.doctor.check_result import finding
    from payagent.doctor.files import check_files
    from payagent.settings.config_file import DaemonPaths

    def daemon() -> str:
        client = OperatorClient(DaemonPaths(settings.api.socket, settings.data_dir), None)
        answer = client.readiness()
        failed = [f"{name}: {reason}" for name, reason in answer.get("checks", {}).items() if reason != "ok"]
        if failed or not answer.get("ready"):
            code = answer.get("code") or "chain_not_ready"
            needs_provider = any(item.problem and item.name.startswith("provider ") for item in findings)
            raise Refused(
                code,
                f"{'ready, but' if answer.get('ready') else 'not ready:'} {'; '.join(failed)}",
                fix=_PROVIDER_FIRST if needs_provider and code == "chain_not_ready" else None,
            )
        return "running and ready"

    findings = [*check_files(settings, config, os.environ, looked_for), *check_choices(settings, config)]
    findings += asyncio.run(check_chain(settings, lambda: time.time_ns() // 1_000_000))
    return [*findings, finding("daemon", daemon)]


def _as_json(item: "CheckResult") -> Json:
    return {
        "name": item.name,
        "ok": item.problem is None,
        "warning": item.is_warning,
        "detail": item.detail,
        "code": None if item.problem is None else item.problem.code,
        "reason": None if item.problem is None else item.problem.reason,
        "fix": item.fix,
    }


def _show(terminal: Terminal, data: list[Json]) -> None:
    """One line for each check, then each remedy once."""
    width = max(len(str(row["name"])) for row in data)
    failed_by_fix: dict[str, list[str]] = {}
    for row in data:
        mark, tone = _MARKS[bool(row["ok"]), bool(row["warning"])]
        terminal.marked(mark, tone, f" {str(row['name']).ljust(width)}  {row['detail']}", " " * (width + 7))
        if row["fix"] is not None:
            failed_by_fix.setdefault(str(row["fix"]), []).append(str(row["name"]))
    if failed_by_fix:
        terminal.line("\nWhat to do:")
    for fix, names in failed_by_fix.items():
        terminal.line(f"  {', '.join(names)}: {fix}", "    ")
