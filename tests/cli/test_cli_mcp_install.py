"""`payagent mcp install` and `uninstall`, in a home folder of their own, against the running daemon."""

import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from kit.canaries import plant
from kit.cli import Result, Shop
from kit.terminal import at_terminal

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
    assert members(file) == (tomllib if client == "codex" else json).loads(before)
    assert client != "codex" or file.read_text() == before
    assert not token_file.exists()
    assert apps(shop)[app] is False
    gone = shop.payagent("mcp", "uninstall", client, "--yes")
    assert (gone.code, gone.problem) == (2, "config_invalid")


def test_a_client_without_a_configuration_gets_a_private_one(shop: Shop, home: Path) -> None:
    for client in ("cursor", "codex"):
        assert install(shop, client, f"first-of-{client}").json["copy"] is None
        file = home / FILES[client][0]
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert list(members(file)) == [FILES[client][1]]


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
