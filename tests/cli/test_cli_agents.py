"""Agents get payagent: `payagent mcp install` in a home folder of its own, and the page with the recipes."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.canaries import plant
from kit.cli import Result, Shop, clean_environ, write_private
from kit.effort import pick
from kit.http import NO_TLS
from kit.pages import blocks
from kit.scripted_model import scripted_model
from kit.terminal import at_terminal
from mcp import Client, StdioServerParameters

OTHER = {"command": "other", "args": ["--flag"]}
JSON = json.dumps({"theme": "dunkel-ü", "mcpServers": {"other": OTHER}, "ratio": 0.25})
FILES = {
    "claude-code": (".claude.json", "mcpServers", JSON),
    "claude-desktop": (".config/Claude/claude_desktop_config.json", "mcpServers", JSON),
    "codex": (
        ".codex/config.toml",
        "mcp_servers",
        'model = "a"  # kept\n\n[mcp_servers.other]\ncommand = "other"\nargs = ["--flag"]\n',
    ),
    "cursor": (".cursor/mcp.json", "mcpServers", JSON),
    "gemini": (".gemini/settings.json", "mcpServers", JSON),
    "vscode": (".config/Code/User/mcp.json", "servers", JSON.replace("mcpServers", "servers")),
}
"""Where each client keeps its servers below the home folder, under which member, and such a file."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def members(file: Path) -> dict[str, Any]:
    text = file.read_text()
    return dict(tomllib.loads(text) if file.suffix == ".toml" else json.loads(text))


def written(home: Path, client: str) -> Path:
    file = home / FILES[client][0]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FILES[client][2])
    return file


def install(shop: Shop, client: str, app: str, *more: str) -> Result:
    return shop.payagent("mcp", "install", client, "--app", app, "--per-day", "5 ADA", "--yes", *more)


def apps(shop: Shop) -> dict[str, bool]:
    return {row["name"]: row["active"] for row in shop.payagent("app").json["apps"]}


@pytest.mark.parametrize("client", FILES)
def test_an_installed_client_has_a_budget_and_an_uninstalled_one_has_none(
    shop: Shop, home: Path, client: str
) -> None:
    file, before = written(home, client), FILES[client][2]
    file.chmod(0o640)
    app = f"app-of-{client}"
    result = install(shop, client, app)
    assert result.code == 0, result.err
    assert Path(result.json["config"]) == file

    servers = members(file)[FILES[client][1]]
    assert servers["other"] == OTHER
    entry = servers["payagent"]
    assert os.access(entry["command"], os.X_OK)
    assert client != "codex" or (entry["required"], entry["startup_timeout_sec"]) == (True, 30)
    assert entry["args"][:3] == ["mcp", "serve", "--token-file"]
    assert Path(entry["env"]["PAYAGENT_URL"]).is_socket()
    token_file = Path(entry["args"][3])
    token = plant(f"the token of {app}", token_file.read_text().strip())
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
    assert not [path for path in home.rglob("*") if path.is_file() and token in path.read_text()]
    assert token not in result.out + result.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert Path(result.json["copy"]).read_text() == before
    limits = shop.payagent("limits", "--token-file", token_file).json["limits"]
    assert [(one["limit"], one["most"]) for one in limits if one["app"] == app] == [("per_day", "5000000")]

    again = install(shop, client, f"{app}-again")
    assert (again.code, again.problem) == (2, "config_invalid")
    assert f"{app}-again" not in apps(shop)

    result = shop.payagent("mcp", "uninstall", client, "--yes")
    assert result.code == 0, result.err
    assert file.read_text() == before
    assert not token_file.exists()
    assert apps(shop)[app] is False
    gone = shop.payagent("mcp", "uninstall", client, "--yes")
    assert (gone.code, gone.problem) == (2, "config_invalid")


def test_a_client_without_a_configuration_gets_a_private_one_and_keeps_none(shop: Shop, home: Path) -> None:
    for client in ("cursor", "codex"):
        assert install(shop, client, f"first-of-{client}").json["copy"] is None
        file = home / FILES[client][0]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list(members(file)) == [FILES[client][1]]
        assert shop.payagent("mcp", "uninstall", client, "--yes").code == 0
        assert list(file.parent.iterdir()) == []


FORMS = {
    "four blanks": ("cursor", '{\n    "a": [1,\n  2],\n    "mcpServers": {\n        "x": {}\n    }\n}\n'),
    "tabs, no last newline": ("claude-code", '{\n\t"mcpServers": {\n\t\t"x": {"url": "u"}\n\t},\n\t"b": 1\n}'),
    "one line": ("gemini", '{"mcpServers":{"x":{}},"b":1.50}'),
    "an object on one line": ("gemini", '{\n  "mcpServers": { "x": {"url": "}"} },\n  "b": 1e3\n}\n'),
    "not ASCII": ("vscode", '{\n  "\u00fc \\u00fc": "\\" \u2713",\n  "servers": {}\n}\n'),
    "CRLF": ("cursor", '{\r\n  "mcpServers": {\r\n    "x": {}\r\n  }\r\n}\r\n'),
    "no servers": ("claude-desktop", '{\n  "theme": "dark",\n  "n": {"mcpServers": 1}\n}\n'),
    "empty servers": ("claude-desktop", '{\n  "mcpServers": {\n  }\n}\n'),
    "an empty object": ("cursor", " {} \n"),
    "TOML, CRLF": ("codex", 'model = "\u00fc"\r\n\r\n[mcp_servers.other]\r\ncommand = "x"\r\n'),
    "TOML, no last newline": ("codex", "a = 1 # b"),
    "TOML, an empty file": ("codex", ""),
}
"""Each form of a configuration, with its client."""


@pytest.mark.parametrize("form", FORMS)
def test_a_configuration_is_byte_for_byte_the_same_but_for_the_entry(shop: Shop, home: Path, form: str) -> None:
    client, before = FORMS[form][0], FORMS[form][1].encode()
    file = written(home, client)
    file.write_bytes(before)
    earlier = file.with_name(f"{file.name}.before-payagent")
    earlier.write_text("a copy made before")
    app = "form-" + "-".join(re.findall("[a-zA-Z]+", form))

    result = install(shop, client, app)
    assert result.code == 0, result.err
    after = file.read_bytes()
    size = len(after) - len(before)
    assert any(after[:at] + after[at + size :] == before for at in range(len(before) + 1)), after.decode()
    assert b"\r" not in before or b"\n" not in after.replace(b"\r\n", b"")
    was = (tomllib if client == "codex" else json).loads(before.decode())
    there = members(file)
    assert there[FILES[client][1]].pop("payagent")["args"][-1].endswith(f"{app}.token")
    assert {key: value for key, value in there.items() if value} == {
        key: value for key, value in was.items() if value
    }
    assert Path(result.json["copy"]).read_bytes() == before

    assert shop.payagent("mcp", "uninstall", client, "--yes").code == 0
    assert file.read_bytes() == before
    assert earlier.read_text() == "a copy made before"


def test_the_folders_that_variables_name_are_used(shop: Shop, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(home / "elsewhere"))
    assert install(shop, "codex", "elsewhere").code == 0
    assert (home / "elsewhere/config.toml").is_file()


def test_a_configuration_that_is_a_link_stays_one(shop: Shop, home: Path) -> None:
    file = written(home, "cursor")
    file.rename(home / "dotfile.json")
    file.symlink_to(home / "dotfile.json")
    assert install(shop, "cursor", "linked").code == 0
    assert file.is_symlink()
    assert "payagent" in members(home / "dotfile.json")["mcpServers"]


@pytest.mark.parametrize(
    ("client", "text"),
    [
        ("vscode", '{"servers": {}  // mine\n}'),
        ("gemini", "[]"),
        ("cursor", '{"mcpServers": []}'),
        ("claude-code", '"\udcff'),
        ("codex", "model = \n"),
        ("codex", "mcp_servers = {}\n"),
    ],
)
def test_a_configuration_that_is_not_understood_is_left_alone(
    shop: Shop, home: Path, client: str, text: str
) -> None:
    file = written(home, client)
    file.write_bytes(text.encode(errors="surrogateescape"))
    refused = install(shop, client, "never-added")
    assert (refused.code, refused.problem) == (2, "config_invalid")
    assert str(file) in refused.error["detail"]
    assert file.read_bytes() == text.encode(errors="surrogateescape")
    assert "never-added" not in apps(shop)


def test_a_server_that_somebody_else_wrote_is_left_alone(shop: Shop, home: Path) -> None:
    own = {"codex": '[mcp_servers.payagent]\ncommand = "mine"\n'}
    for client in ("cursor", "codex"):
        file = written(home, client)
        file.write_text(text := own.get(client, json.dumps({"mcpServers": {"payagent": {"url": "http://mine"}}})))
        refused = shop.payagent("mcp", "uninstall", client, "--yes")
        assert (refused.code, refused.problem) == (2, "config_invalid")
        assert file.read_text() == text


def test_print_shows_the_configuration_and_changes_no_file_of_the_client(shop: Shop, home: Path) -> None:
    for client in ("claude-code", "codex"):
        file = written(home, client)
        file.write_text("# not understood {")
        result = install(shop, client, f"printed-for-{client}", "--print")
        assert result.code == 0, result.err
        shown = tomllib.loads(result.out) if client == "codex" else json.loads(result.out)
        token_file = Path(shown[FILES[client][1]]["payagent"]["args"][-1])
        assert plant("a printed app's token", token_file.read_text().strip()) not in result.out
        assert file.read_text() == "# not understood {"


def test_nothing_is_changed_before_a_person_agrees(shop: Shop, home: Path) -> None:
    file = written(home, "cursor")
    command = ("mcp", "install", "cursor", "--app", "unwanted", "--per-day", "5 ADA")
    unasked = shop.payagent(*command)
    assert (unasked.code, "add --yes" in unasked.err) == (2, True)
    with at_terminal(*command, "--config", shop.config, HOME=str(home)) as session:
        session.expect(f"Add the server payagent to {file}? [y/N]")
        session.type("n")
        assert session.end() != 0
    assert file.read_text() == FILES["cursor"][2]
    assert "unwanted" not in apps(shop)


def test_an_install_without_a_limit_is_refused(shop: Shop) -> None:
    refused = shop.payagent("mcp", "install", "cursor", "--app", "unlimited", "--yes")
    assert (refused.code, "name a limit" in refused.err) == (2, True)


def by_socket(shop: Shop, token: str) -> httpx.Client:
    """The API, with an app's token."""
    socket = httpx.HTTPTransport(uds=str(shop.folder / "s"), verify=NO_TLS)
    return httpx.Client(
        base_url="http://localhost", transport=socket, headers={"authorization": f"Bearer {token}"}
    )


OF_THE_OPERATOR: tuple[tuple[str, dict[str, Any]], ...] = (
    ("/v1/limits", {"app": "hijacked", "limits": {"per_day": "100000000000"}}),
    ("/v1/apps", {"name": "another"}),
    ("/v1/apps/hijacked/rotate-token", {}),
    ("/v1/merchants", {"name": "mine", "origin": "http://127.0.0.1:9"}),
    ("/v1/wallet/send", {"to": "addr_test1", "units": "1"}),
    ("/v1/payments/pay_1/approve", {}),
)


async def test_a_hijacked_agent_spends_its_budget_at_allowed_merchants_and_nothing_else(
    shop: Shop, home: Path
) -> None:
    shop.settings(asset="lovelace", price="2000000", splits=[], dialect="t-backend", batch=1, timeout=300)
    assert install(shop, "claude-code", "hijacked").code == 0
    entry = members(home / FILES["claude-code"][0])["mcpServers"]["payagent"]
    paid = {"url": f"{shop.devnet.merchant_url}/chat", "method": "POST", "body": '{"message": "one"}'}
    more = {**paid, "body": '{"message": "two"}', "max_cost": "1000 ADA"}
    server = StdioServerParameters(command=entry["command"], args=entry["args"], env=entry["env"])
    async with Client(server) as client:
        served = await client.call_tool("fetch", paid)
        assert not served.is_error, served.content
        shop.settings(price="4000000")
        over = await client.call_tool("fetch", more)
        elsewhere = await client.call_tool("fetch", {"url": "http://127.0.0.1:9/"})
    assert (over.is_error, (over.structured_content or {})["code"]) == (True, "limit_exceeded")
    assert (elsewhere.is_error, (elsewhere.structured_content or {})["code"]) == (True, "merchant_not_allowed")
    assert shop.held() == ["0"] * len(shop.held())

    token = plant("the token of hijacked", Path(entry["args"][3]).read_text().strip())
    with by_socket(shop, token) as api:
        refusals = {path: api.post(path, json=body).json()["code"] for path, body in OF_THE_OPERATOR}
    assert refusals == dict.fromkeys(refusals, "forbidden")


def test_the_skills_commands_quote_and_buy_and_say_what_is_left(shop: Shop, tmp_path: Path) -> None:
    shop.settings(asset="lovelace", price="1500000", splits=[])
    token_file = write_private(tmp_path / "agent.token", shop.payagent("app", "add", "skilled").json["token"])
    plant("the token of skilled", token_file.read_text())
    (commands,) = blocks("Without MCP", "docs/agents/payagent/SKILL.md")
    said = commands.replace("https://api.example.com/answer", f"{shop.devnet.merchant_url}/x402/premium")
    lines = [shlex.split(line.replace("agent.token", str(token_file))) for line in said.splitlines()]
    assert [shop.payagent(*line[1:]).code for line in lines] == [10, 0, 0, 0]
    assert shop.payments()[0]["delivery"] == "accepted"


PAGE = "docs/how-to/use-an-agent-framework.md"
RECIPES = ("OpenAI's tool calling", "pydantic-ai")


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_agent_buys_within_its_budget_and_is_told_of_a_refusal(shop: Shop, tmp_path: Path, recipe: str) -> None:
    shop.settings(asset="lovelace", price="2000000", splits=[], dialect="t-backend", batch=1, timeout=300)
    name = f"agent-{RECIPES.index(recipe)}"
    token = plant(f"the token of {name}", shop.payagent("app", "add", name, "--per-day", "3 ADA").json["token"])
    (port,) = re.findall(
        r"serves devnet on http://127\.0\.0\.1(:[0-9]+)", (shop.folder / "daemon.log").read_text()
    )
    (tool,) = blocks("The tool", PAGE, "python")
    (program,) = blocks(recipe, PAGE, "python")
    assert max(tool.count("\n"), program.count("\n")) <= 15
    (tmp_path / "buy.py").write_text(tool.replace(":8402", port))

    def run(base_url: str) -> str:
        environ = {
            "MERCHANT": shop.devnet.merchant_url,
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": base_url,
            "PATH": os.environ["PATH"],
            "PAYAGENT_TOKEN": token,
        }
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            env=clean_environ() | environ,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    with scripted_model() as base_url:
        assert run(base_url).startswith("I bought this: Cardano is a proof-of-stake chain")
        if recipe in RECIPES[: pick(1, 2)]:
            assert run(base_url).startswith("I bought this: Not bought: limit_exceeded. ")
    spent = [row for row in shop.payagent("limits").json["limits"] if row["app"] == name]
    assert 2_000_000 < int(spent[0]["spent"]) < 3_000_000
