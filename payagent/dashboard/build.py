"""Puts the dashboard together: all its pages, its templates, and its sessions' events.

Never: serves anything.
"""

from collections.abc import Mapping
from pkgutil import iter_modules, resolve_name

from payagent.agent.fleet.fleet import Fleet
from payagent.agent.operator.approval_links import ApprovalLinks
from payagent.api.app import FastPath
from payagent.api.http.sessions import Sessions
from payagent.dashboard import pages
from payagent.dashboard.app import Dashboard
from payagent.dashboard.decide import LinkPages
from payagent.dashboard.pages import channels
from payagent.dashboard.render import Renderer
from payagent.dashboard.sign_in import SignInPages
from payagent.store.rows import apps, writes

MODULES = tuple(resolve_name(one.name) for one in iter_modules(pages.__path__, f"{pages.__name__}."))
"""Every module of `pages`. Each has its paths in `PAGES`, with their place in the navigation."""

_EXPLORERS = {
    "mainnet": "https://cexplorer.io/tx/{tx}",
    "preprod": "https://preprod.cexplorer.io/tx/{tx}",
    "preview": "https://preview.cexplorer.io/tx/{tx}",
}


def create_dashboard(
    fleet: Fleet,
    api: FastPath,
    sessions: Sessions,
    links: ApprovalLinks | None,
    api_url: str,
    explorer_url: str | None,
    daemon: Mapping[str, str],
    *,
    is_devnet: bool,
) -> Dashboard:
    """`links`: the signed approval links, if configured. `api_url`: where programs reach the API and the proxy.

    `explorer_url`: where a transaction's link leads, with {tx}; None: the network's usual one, and none on the
    devnet. `daemon`: what the settings page tells of this process.
    """
    context = fleet.context
    network, has_channels = context.config.network.name, context.config.channels is not None
    renderer = Renderer(
        network="devnet" if is_devnet else network,
        explorer=explorer_url or ("" if is_devnet else _EXPLORERS.get(network, "")),
        tokens=context.config.tokens,
        api_url=api_url,
        daemon=daemon,
    )

    async def note(event: str, detail: Mapping[str, object]) -> None:
        now_ms = context.ports.clock.now_ms()
        await context.write("dashboard", lambda unit: writes.note(unit, None, event, None, now_ms, detail))

    open_routes = SignInPages(sessions, renderer, note).routes
    if links is not None:
        open_routes += LinkPages(fleet, links, api.state.rate_limiter, renderer).routes
    return Dashboard(
        api,
        sessions,
        lambda token_hash: apps.by_token(context.conn, token_hash, context.latest_ms),
        context.ports.new_id,
        renderer,
        note,
        [one for module in MODULES if module is not channels or has_channels for one in module.PAGES],
        open_routes,
    )
