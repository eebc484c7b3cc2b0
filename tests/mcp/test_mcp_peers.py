"""The official TypeScript clients and the MCP Inspector's CLI mode use `payagent mcp`, on stdio and on HTTP."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from kit.cli import clean_environ
from kit.effort import long_only, pick
from kit.mcp import AgentShop

PEERS = Path(__file__).parent / "peers"
INSPECTOR = PEERS / "node_modules" / "@modelcontextprotocol" / "inspector-cli" / "build"
IS_THERE = shutil.which("node") is not None and (PEERS / "node_modules" / ".package-lock.json").is_file()

pytestmark = [
    pytest.mark.usefixtures("usual_terms"),
    pytest.mark.skipif(not IS_THERE, reason="NOT RUN: node or the packages of tests/mcp/peers are missing"),
]

TOOLS = {"fetch", "quote", "budget", "payments", "payment", "merchants", "discover", "mcp_tools", "mcp_call"}


async def node(shop: AgentShop, script: Path, *arguments: str) -> Any:
    """What a program prints, as JSON. The Inspector wants to be started in its own folder."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(script), *arguments),
        cwd=script.parent,
        env=clean_environ() | shop.environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


@pytest.mark.parametrize(
    ("way", "package", "version"),
    [
        *(("stdio", "client", "2026-07-28"), ("http", "sdk", "2025-11-25"), ("http", "client", "2026-07-28")),
        *((way, "client", "2025-11-25") for way in ("stdio", "http")),
        ("stdio", "sdk", "2025-11-25"),
    ][: pick(2, 6)],
)
async def test_the_typescript_client_pays_and_reads(
    shop: AgentShop, url: str, way: str, package: str, version: str
) -> None:
    before = len(shop.payments())
    asked: dict[str, object] = {
        "package": package,
        "call": {"name": "fetch", "arguments": shop.ask(f"{package} {version} {way}", max_cost="3 ADA")},
    }
    asked |= {"pin": version} if version == "2026-07-28" else {}
    asked |= {"url": url} if way == "http" else {"command": shop.command, "env": clean_environ() | shop.environ}
    got = await node(shop, PEERS / "client.mjs", json.dumps(asked))
    assert set(got["tools"]) == TOOLS
    assert got["version"] == version if package == "client" else True
    paid = got["result"]["structuredContent"]
    assert (paid["outcome"], paid["status"]) == ("paid_and_served", 200), got["result"]
    assert json.loads(got["ledger"]["contents"][0]["text"])[0]["payment_id"] == paid["payment_id"]
    assert "budget" in got["prompt"]["messages"][0]["content"]["text"]
    assert len(shop.payments()) == before + 1


@long_only
@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_the_inspectors_cli_lists_the_tools_and_pays(shop: AgentShop, url: str, way: str) -> None:
    before = len(shop.payments())
    server = [url, "--transport", "http"] if way == "http" else shop.command

    async def inspect(*arguments: str) -> Any:
        return await node(shop, INSPECTOR / "cli.js", "--cli", *server, *arguments)

    listed = await inspect("--method", "tools/list")
    assert {tool["name"] for tool in listed["tools"]} == TOOLS
    ask = shop.ask(f"inspector {way}")
    paid = await inspect(
        *("--method", "tools/call", "--tool-name", "fetch"),
        *("--tool-arg", f"url={ask['url']}", "--tool-arg", f"body={json.dumps(ask['body'])}"),
    )
    assert paid["structuredContent"]["outcome"] == "paid_and_served", paid
    assert len(shop.payments()) == before + 1
