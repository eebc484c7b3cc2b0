"""`payagent mcp install` and `uninstall`: give an MCP client an app, and name payagent in its configuration.

`CLIENTS` says where each client keeps its list of servers.
Never: writes a token into a client's configuration; changes a file that it cannot read in full.
"""

import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import click

from payagent.cli.json_text import members, with_member, without_member
from payagent.cli.limits import limit_options
from payagent.cli.options import Connect, example, read_amounts, talks_to_daemon
from payagent.cli.terminal import Terminal
from payagent.core.money import LOVELACE
from payagent.core.problems import Refused
from payagent.secret_file import make_secret_file, put_in_place
from payagent.settings.config_file import home

SERVER = "payagent"
TOKEN_FOLDER = "agents"  # noqa: S105  the folder's name

Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ServerList:
    """Where an MCP client keeps its list of servers.

    `key` is the member of `file` with the servers. The file is in `folder` of the home folder, unless the
    environment variable `variable` names another one. `extra` is what an entry has besides the command.
    """

    key: str
    file: str
    folder: str = ""
    variable: str = ""
    extra: Entry = field(default_factory=dict)

    def config_file(self, environ: Mapping[str, str]) -> Path:
        return Path(environ.get(self.variable) or home(environ) / self.folder) / self.file

    @property
    def is_toml(self) -> bool:
        return self.file.endswith(".toml")

    def show(self, entry: Entry) -> str:
        """The configuration with this entry alone."""
        if not self.is_toml:
            return json.dumps({self.key: {SERVER: entry}}, indent=2) + "\n"
        lines = "".join(f"{name} = {_toml(value)}\n" for name, value in entry.items())
        return f"[{self.key}.{SERVER}]\n{lines}"

    def read(self, file: Path) -> tuple[str | None, dict[str, Any]]:
        """The file's text and its servers. None and no servers if there is no file. Refused `config_invalid`."""
        try:
            text = file.read_bytes().decode()
            config = tomllib.loads(text) if self.is_toml else json.loads(text)
        except FileNotFoundError:
            return None, {}
        except OSError as error:
            raise Refused("config_invalid", f"cannot read {file}: {error.strerror}") from None
        except ValueError:
            config = None
        if not isinstance(config, dict) or not isinstance(config.get(self.key, {}), dict):
            form = "TOML" if self.is_toml else "JSON without comments"
            fix = "change it yourself, as docs/how-to/connect-an-agent.md says"
            raise _left(file, f"it is not {form} with servers under {self.key}; {fix}")
        return text, config.get(self.key, {})

    def added(self, file: Path, entry: Entry) -> str:
        """The file's text with the entry. Refused `config_invalid` if it has one."""
        text, servers = self.read(file)
        if SERVER in servers:
            raise _left(file, f"it has a server {SERVER} already; `payagent mcp uninstall` removes it")
        if text is None:
            return self.show(entry)
        if not self.is_toml:
            at = self._servers_at(text)
            if at is None:
                return with_member(text, text.index("{"), self.key, _only(entry))
            return with_member(text, at, SERVER, json.dumps(entry))
        new = text + _lines_as_in(text, f"\n{self.show(entry)}")
        try:
            tomllib.loads(new)
        except tomllib.TOMLDecodeError:
            raise _left(file, f"no table can be added to its {self.key}") from None
        return new

    def removed(self, file: Path) -> tuple[str | None, Entry]:
        """The file's text without the entry, and the entry. The text is None if `added` made the file.

        Refused `config_invalid` if the entry is not as installed.
        """
        text, servers = self.read(file)
        entry = servers.get(SERVER)
        if text is None or entry is None:
            raise _left(file, f"it has no server {SERVER}")
        if text == self.show(entry):
            return None, entry
        if not self.is_toml:
            at = self._servers_at(text) or 0
            if text.startswith(_only(entry), at):
                return without_member(text, text.index("{"), self.key), entry
            return without_member(text, at, SERVER), entry
        before, table, after = text.partition(_lines_as_in(text, self.show(entry)))
        if not table:
            raise _left(file, f"its table {self.key}.{SERVER} was edited; remove the table yourself")
        return before.removesuffix(_lines_as_in(text, "\n")) + after, entry

    def _servers_at(self, text: str) -> int | None:
        """Where the object with the servers opens in JSON."""
        return next((at for name, at, _ in reversed(members(text, text.index("{"))) if name == self.key), None)


_STDIO = {"type": "stdio"}
_CODEX = {"required": True, "startup_timeout_sec": 30, "tool_timeout_sec": 300}
CLIENTS = {
    "claude-code": ServerList("mcpServers", ".claude.json", extra=_STDIO),
    "claude-desktop": ServerList(
        "mcpServers", "Claude/claude_desktop_config.json", folder=".config", variable="XDG_CONFIG_HOME"
    ),
    "codex": ServerList("mcp_servers", "config.toml", folder=".codex", variable="CODEX_HOME", extra=_CODEX),
    "cursor": ServerList("mcpServers", ".cursor/mcp.json"),
    "gemini": ServerList("mcpServers", ".gemini/settings.json"),
    "vscode": ServerList(
        "servers", "Code/User/mcp.json", folder=".config", variable="XDG_CONFIG_HOME", extra=_STDIO
    ),
}
"""By the name on the command line; each file is the one for all projects of a user. By itself, Codex starts
its turn without a server that needs more than a second, and ends a call after 60 s, which some payments exceed.
"""

_yes_option = click.option("--yes", is_flag=True, help="Change files without asking. Required in scripts.")
_client_argument = click.argument("name", metavar="CLIENT", type=click.Choice(list(CLIENTS)))


@click.command(
    epilog=example(
        'payagent mcp install claude-code --app coder --per-day "5 ADA"',
        'payagent mcp install codex --app coder --per-payment "2 ADA" --per-day "5 ADA" --print',
    )
)
@_client_argument
@click.option("--app", required=True, metavar="NAME", help="Name of the new app.")
@limit_options
@click.option(
    "--print",
    "is_printed",
    is_flag=True,
    help="Add the app, but print the configuration and leave its file alone.",
)
@_yes_option
@talks_to_daemon
def install(
    terminal: Terminal,
    connect: Connect,
    name: str,
    app: str,
    is_printed: bool,
    yes: bool,
    **amounts: str | None,
) -> None:
    """Give an MCP client a budget.

    CLIENT is claude-code, claude-desktop, codex, cursor, gemini or vscode. This adds an app with these limits, and
    writes its token into a file of its own. The client's configuration gets the command `payagent mcp serve` and
    that file's path, and no token. A copy of the configuration stays beside it. The app may pay every merchant.

    With --print, it still adds the app and writes its token file. Only the client's configuration stays as it is.
    """
    if not any(amounts.values()):
        raise click.UsageError("name a limit, such as --per-day")
    client, file = CLIENTS[name], CLIENTS[name].config_file(os.environ)
    daemon = connect()
    settings = daemon.settings
    _, limits = read_amounts(LOVELACE, amounts, settings.limits.tokens)
    token_file = settings.data_dir / TOKEN_FOLDER / f"{app}.token"
    entry = _entry(client, token_file, settings.api.socket)
    if not is_printed:
        client.added(file, entry)
        _ask(terminal, yes, f"Add the server {SERVER} to {file}?")
    answer = daemon.post("/v1/apps", {"name": app, "limits": limits})
    token_file.parent.mkdir(mode=0o700, exist_ok=True)
    make_secret_file(token_file, answer["token"])
    if is_printed:
        terminal.write(client.show(entry))
        terminal.say(f"{app} has its limits, and its token is in {token_file}. Add this to {file}.")
        return
    copy = _replace(file, client.added(file, entry))
    done = {"client": name, "app": app, "token_file": str(token_file), "config": str(file), "copy": copy}
    terminal.give(done, lambda: terminal.facts(done.items()))
    terminal.say(f"Restart {name}: it then starts payagent by itself.")


@click.command(epilog=example("payagent mcp uninstall claude-code"))
@_client_argument
@_yes_option
@talks_to_daemon
def uninstall(terminal: Terminal, connect: Connect, name: str, yes: bool) -> None:
    """Take an MCP client's budget away.

    This revokes the app that `payagent mcp install` added, removes its token file, and takes payagent out of the
    client's configuration. The app's payments stay in the ledger.
    """
    client, file = CLIENTS[name], CLIENTS[name].config_file(os.environ)
    text, entry = client.removed(file)
    token_file = Path(next(reversed(entry.get("args", [])), ""))
    daemon = connect()
    if token_file.parent != daemon.settings.data_dir / TOKEN_FOLDER:
        raise _left(file, f"its server {SERVER} is not from `payagent mcp install`; remove it yourself")
    app = token_file.stem
    _ask(terminal, yes, f"Revoke the app {app}, and remove the server {SERVER} from {file}?")
    daemon.post(f"/v1/apps/{app}/revoke", {})
    token_file.unlink(missing_ok=True)
    done = {"client": name, "app": app, "config": str(file), "copy": _replace(file, text)}
    terminal.give(done, lambda: terminal.line(f"{app} is revoked, and {file} names payagent no more"))


def _entry(client: ServerList, token_file: Path, socket: Path) -> Entry:
    """How the client starts payagent. It may know neither our virtual environment nor where the socket is."""
    return {
        **client.extra,
        "command": str(Path(sys.executable).with_name("payagent")),
        "args": ["mcp", "serve", "--token-file", str(token_file)],
        "env": {"PAYAGENT_URL": str(socket)},
    }


def _ask(terminal: Terminal, yes: bool, question: str) -> None:
    if yes:
        return
    if not terminal.can_ask:
        raise click.UsageError("there is no terminal to ask: nothing was changed; add --yes to change files")
    click.confirm(question, abort=True, err=True)


def _replace(file: Path, text: str | None) -> str | None:
    """Write the file in one step, and return the path of the copy of what it was. No text removes the file."""
    file = file.resolve()  # a link stays one
    new, copy = file.with_name(f"{file.name}.new"), next(_names_of_copies(file))
    try:
        if text is None:
            file.unlink()
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        new.touch(mode=0o600)
        if was_there := file.exists():
            shutil.copy2(file, copy)
            shutil.copymode(file, new)
        new.write_bytes(text.encode())
        put_in_place(new, file)
    except OSError as error:
        raise Refused("write_failed", f"{file}: {error.strerror}") from None
    return str(copy) if was_there else None


def _names_of_copies(file: Path) -> Iterator[Path]:
    """Names that no earlier copy has."""
    names = (f"{file.name}.before-payagent{f'.{number}' if number > 1 else ''}" for number in count(1))
    return (path for name in names if not (path := file.with_name(name)).exists())


def _left(file: Path, why: str) -> Refused:
    return Refused("config_invalid", f"{file} was left as it is: {why}")


def _only(entry: Entry) -> str:
    """The servers as `added` writes them into JSON without any: its mark is that no blank follows the brace."""
    return json.dumps({SERVER: entry})


def _lines_as_in(text: str, new: str) -> str:
    """New lines that end like those of the text."""
    return new.replace("\n", "\r\n") if "\r\n" in text else new


def _toml(value: object) -> str:
    """A value of an entry in TOML, whose text and lists are written as in JSON."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
