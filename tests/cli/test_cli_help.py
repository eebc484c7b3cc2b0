"""Help: every command explains itself with an example, quickly."""

import io
import json
import re
import subprocess
import sys

import click
import httpx
import pytest
from kit.cli import invoke, spawn
from kit.http import NO_TLS
from kit.pages import docs_script

from payagent.cli import run
from payagent.cli.main import COMMANDS as ROOT_COMMANDS
from payagent.cli.terminal import Terminal
from payagent.core.bounds import LIST_LIMIT_MAX, SPLIT_COUNT_MAX

DOCS = docs_script()
COMMANDS = dict(DOCS.walk())
LOADED_MAX = 150
"""Modules beyond those of Python's start."""
HEAVY = ("pycardano", "fastapi", "httpx", "pydantic", "uvicorn", "sqlite3", "structlog", "payagent.cli.pay")


def test_every_command_explains_itself_with_an_example() -> None:
    for path, command in COMMANDS.items():
        text = DOCS.help_of(path, command)
        assert "Example:" in text, path
        assert text.split("Example:")[1].split("\n")[1].strip().startswith(("payagent", "curl")), path
        assert not command.get_short_help_str(55).endswith("..."), f"{path}: not one line of its group's help"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.help, f"{path} {parameter.name}"


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for path in COMMANDS:
        assert invoke(*path.split()[1:], "--help").code == 0, path
        assert f"Usage: {path}" in capsys.readouterr().out


def test_completion_prints_the_script_of_the_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        told = invoke("completion", shell)
        assert (told.code, told.err) == (0, "")
        assert f"_PAYAGENT_COMPLETE={shell}_complete" in told.out


def test_a_shell_gets_completions_of_commands_subcommands_and_options() -> None:
    for typed, completed in (
        ("payagent sta", "status"),
        ("payagent wallet sp", "split"),
        ("payagent log --fo", "--follow"),
    ):
        words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
        process = spawn(environ=words | {"_PAYAGENT_COMPLETE": "bash_complete"}, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (0, f"plain,{completed}\n")


def test_help_loads_few_and_no_heavy_modules() -> None:
    """Loading modules is what would make it slow."""
    code = (
        "import io, sys; before = set(sys.modules); from payagent.cli import run; "
        "from payagent.cli.terminal import Terminal; "
        "run(['--help'], Terminal(io.StringIO(), io.StringIO(), io.StringIO())); "
        f"print(len(set(sys.modules) - before), *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert loaded.stdout.startswith("Usage: payagent ")
    count, *heavy = loaded.stdout.splitlines()[-1].split()
    assert heavy == []
    assert int(count) <= LOADED_MAX


def test_the_root_help_shows_each_commands_own_summary() -> None:
    for name, (_, summary) in ROOT_COMMANDS.items():
        assert summary == COMMANDS[f"payagent {name}"].get_short_help_str(100)


def test_the_root_help_lists_each_command_once_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("--help").code == 0
    sections = re.findall(r"(?m)^(\w[^\n]*):\n((?:  \w.*\n)+)", capsys.readouterr().out.split("Exit codes")[0])
    listed = [line.split()[0] for _, lines in sections for line in lines.splitlines()]
    assert sorted(listed) == sorted(path.split()[1] for path in COMMANDS if path.count(" ") == 1)
    assert 4 <= len(sections) <= 8


def test_help_at_80_columns_breaks_no_word() -> None:
    for path, command in COMMANDS.items():
        texts = [click.Context(command, info_name=path, terminal_width=width).get_help() for width in (80, 1000)]
        assert texts[0].split() == texts[1].split(), path


def test_a_summary_is_a_whole_sentence_that_fits_80_columns() -> None:
    for path, command in COMMANDS.items():
        summary = command.get_short_help_str(100)
        assert summary[0].isupper(), path
        assert summary.endswith("."), path
        if path.count(" ") > 0:
            parent, _, name = path.rpartition(" ")
            siblings = [one.rpartition(" ")[2] for one in COMMANDS if one.rpartition(" ")[0] == parent]
            assert name in siblings
            assert 2 + max(map(len, siblings)) + 2 + len(summary) <= 78, path


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("pay",),
        ("wallet", "send", "addr"),
        ("payments", "list", "--state", "failed"),
        ("devnet", "x"),
    ],
)
def test_usage_errors_exit_with_2_and_name_the_help(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.problem == "usage"
    assert "--help" in result.error["fix"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (("paymnts",), "payments"),
        (("help",), "payagent --help"),
        (("balance",), "payagent wallet"),
        (("cancel", "pay_1"), "payagent payments resolve"),
        (("wallet", "sned"), "send"),
        (("payments", "list", "--stat", "void"), "--state"),
        (("payments", "list", "--state", "viod"), "void"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_one_that_was_meant(typed: tuple[str, ...], meant: str) -> None:
    result = invoke(*typed)
    assert result.code == 2
    assert meant in result.error["detail"]


@pytest.mark.parametrize("typed", [("nonsense",), ("pay",), ("wallet", "sned"), ("limits", "--nonsense")])
def test_a_usage_error_is_for_people_with_human_even_in_a_pipe(typed: tuple[str, ...]) -> None:
    result = invoke(*typed, "--human")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert "\n  next: see `payagent " in result.err


def test_the_command_without_arguments_shows_its_help_and_exits_with_2() -> None:
    shown = invoke()
    assert (shown.code, shown.out, shown.problem) == (2, "", "usage")
    assert shown.error["detail"] == "no command given"
    out, err = io.StringIO(), io.StringIO()
    assert run([], Terminal(io.StringIO(), out, err, forced_json=False)) == 2
    assert err.getvalue().startswith("Usage: payagent ")
    assert "Exit codes:" in err.getvalue()


def test_the_devnet_prints_its_urls_and_serves_until_it_is_stopped() -> None:
    process = spawn("devnet", "--json", "--block-time", "0", stdout=subprocess.PIPE)
    places = json.loads(process.stdout.readline())
    assert places["network"] == "devnet"
    tip = httpx.get(places["chain"] + "/blocks/latest", verify=NO_TLS, trust_env=False).json()
    assert tip["height"] == 0
    assert httpx.post(places["merchant"] + "/chat", json={}, verify=NO_TLS, trust_env=False).status_code == 402
    process.terminate()
    assert process.communicate(timeout=60)[0] == ""
    assert process.returncode == 0


def test_the_devnet_shows_how_to_get_funds() -> None:
    process = spawn("devnet", "--human", stdout=subprocess.PIPE)
    shown = "".join(iter(process.stdout.readline, "Get an invoice:\n"))
    process.terminate()
    process.communicate(timeout=60)
    assert "/devnet/faucet" in shown
    assert "curl" in shown


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "127.0.0.1", "127.0.0.1:http", "[::]:0"])
def test_the_devnet_listens_on_loopback_only(listen: str) -> None:
    result = invoke("devnet", "--listen", listen)
    assert result.code == 2
    assert "--listen" in result.error["detail"]


@pytest.mark.parametrize(
    ("command", "most"),
    [
        (("payments", "list", "--limit"), LIST_LIMIT_MAX),
        (("ledger", "entries", "--limit"), LIST_LIMIT_MAX),
        (("wallet", "split", "--each", "2 ADA", "--count"), SPLIT_COUNT_MAX),
    ],
)
def test_a_count_above_the_daemons_limit_is_a_usage_error(command: tuple[str, ...], most: int) -> None:
    """At the limit itself the command goes on to look for its config."""
    none = ("--config", "/nonexistent/config.toml")
    assert invoke(*command, str(most), *none).problem == "config_invalid"
    beyond = invoke(*command, str(most + 1), *none)
    assert (beyond.code, beyond.problem) == (2, "usage")
    assert str(most) in beyond.error["detail"]
