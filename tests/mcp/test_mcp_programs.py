"""Claude Code, Codex and Gemini CLI, set up by `payagent mcp install`, buy for a scripted model on loopback.

Nothing leaves the machine: their proxy for other hosts is a closed port. Settlements are counted at the chain.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kit.agent_models import TEXT, scripted_agent_model
from kit.cli import clean_environ
from kit.devnet import settlements
from kit.effort import long_only
from kit.mcp import AgentShop
from kit.proxy import x402_required

PROGRAMS = Path(__file__).parent / "programs" / "node_modules"
IS_THERE = shutil.which("node") is not None and (PROGRAMS / ".package-lock.json").is_file()

pytestmark = [
    long_only,
    pytest.mark.usefixtures("usual_terms"),
    pytest.mark.skipif(not IS_THERE, reason="NOT RUN: node or the packages of tests/mcp/programs are missing"),
]


@dataclass(frozen=True)
class Program:
    """A program's script in PROGRAMS, the arguments by which it asks a model once, and its environment.

    `environ` gets the model's URL. `files` are in the home folder before.
    """

    script: str
    arguments: Callable[[str], list[str]]
    environ: Callable[[str], dict[str, str]]
    files: dict[str, str] = field(default_factory=dict)


def _codex_options(url: str) -> list[str]:
    provider = f'{{ name = "scripted", base_url = "{url}/v1", wire_api = "responses" }}'
    settings = ('model_provider="scripted"', f"model_providers.scripted={provider}", 'model="scripted"')
    return [part for setting in settings for part in ("-c", setting)]


PROGRAM = {
    "claude-code": Program(
        "@anthropic-ai/claude-code/cli-wrapper.cjs",
        lambda _url: ["-p", "Buy it.", "--allowedTools", "mcp__payagent__fetch"],
        lambda url: {
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_BASE_URL": url,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "ENABLE_TOOL_SEARCH": "false",
        },
    ),
    "codex": Program(
        "@openai/codex/bin/codex.js",
        lambda url: [
            *("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
            *(*_codex_options(url), "Buy it."),
        ],
        lambda _url: {},
    ),
    "gemini": Program(
        "@google/gemini-cli/bundle/gemini.js",
        lambda _url: ["-p", "Buy it.", "--yolo", "-m", "gemini-2.5-flash"],
        lambda url: {"GEMINI_API_KEY": "none", "GOOGLE_GEMINI_BASE_URL": url},
        {
            ".gemini/settings.json": json.dumps(
                {
                    "general": {"enableAutoUpdate": False},
                    "privacy": {"usageStatisticsEnabled": False},
                    "security": {"auth": {"selectedType": "gemini-api-key"}, "folderTrust": {"enabled": False}},
                }
            )
        },
    ),
}
CLOSED = "http://127.0.0.1:9"
NO_OTHER_HOST = {"HTTPS_PROXY": CLOSED, "HTTP_PROXY": CLOSED, "NO_PROXY": "127.0.0.1,localhost"}


@pytest.mark.parametrize("client", PROGRAM)
def test_a_program_buys_once_is_refused_once_and_is_asked_to_wait_once(
    shop: AgentShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    program, work = PROGRAM[client], tmp_path / "work"
    work.mkdir()
    for name, content in program.files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)

    dear = x402_required()
    dear["accepts"][0]["amount"] = "6000000"
    shop.raw.offers["/dear"] = dear
    asked = [
        shop.ask(f"bought by {client}"),
        shop.ask(f"too dear for {client}", max_cost="1 ADA"),
        {"url": f"{shop.raw_url}/dear"},
    ]

    def run(*arguments: str, url: str = "") -> str:
        done = subprocess.run(
            ["node", str(PROGRAMS / program.script), *arguments],
            cwd=work,
            env=clean_environ() | NO_OTHER_HOST | program.environ(url),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    added = shop.at.payagent("mcp", "install", client, "--app", f"app-of-{client}", "--per-day", "20 ADA", "--yes")
    assert added.code == 0, added.err
    token_file = added.json["token_file"]
    assert token_file in run("mcp", "list")

    before, paid = len(shop.payments()), settlements(shop.at.devnet)
    with scripted_agent_model(asked) as model:
        assert TEXT in run(*program.arguments(model.url), url=model.url)
        bought, refused, waiting = model.results
    assert "paid_and_served" in bought
    assert "this answer was paid for" in bought
    assert "limit_exceeded" in refused
    assert "Nothing was signed" in refused
    assert "awaiting_approval" in waiting
    assert "/ui/approvals" in waiting
    rows = shop.payments()[: len(shop.payments()) - before]
    assert [row["state"] for row in rows[:2]] == ["awaiting_approval", "rejected"]
    assert shop.at.payagent("payments", "deny", rows[0]["id"]).code == 0
    assert (len(rows), settlements(shop.at.devnet)) == (3, paid + 1)

    assert shop.at.payagent("mcp", "uninstall", client, "--yes").code == 0
    assert token_file not in run("mcp", "list")
