"""Checks the providers: do they answer, are they on our network, are they up to date, what has the wallet?

Never: submits a transaction.
"""

from collections.abc import Callable

from payagent.agent.base.chain_view import ChainView, require_right_clock
from payagent.chain.open import kind_of, needs_token, opened, require_found
from payagent.chain.provider import BlockSeen, ChainProvider, Found, NotFound, Read, Unknown, Why
from payagent.core.money import format_ada
from payagent.core.network import NETWORKS, how_to_fund
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, own_address
from payagent.settings.schema import ProviderSettings, Settings


async def check_chain(settings: Settings, now_ms: Callable[[], int]) -> list[CheckResult]:
    """Check every provider: reachable, on our network, newest block and clock in step with ours.

    The first one that passes shows what the wallet has.
    """
    findings: list[CheckResult] = []
    wallet: CheckResult | None = None
    for index, (name, configured) in enumerate(settings.chain.named.items(), 1):
        try:
            kind = kind_of(name, configured)
            if needs_token(configured) and configured.token_file is None:
                raise Refused("project_id_missing", "it answers only with a project id, and there is none")
            async with opened(name, configured, settings.network) as provider:
                _require_server(await provider.tip(), configured, kind.urls[settings.network])
                answer = await _provider(provider, configured.base_url, settings, now_ms)
                findings.append(CheckResult(f"provider {index}", answer))
                wallet = wallet or await _wallet(provider, configured.base_url, settings)
        except Refused as refused:
            findings.append(CheckResult(f"provider {index}", f"{configured.base_url}: {refused.detail}", refused))
    return findings if wallet is None else [*findings, wallet]


def _require_server(tip: Read[BlockSeen], configured: ProviderSettings, example: str) -> None:
    """Refuse a base URL at which no provider answers, or another server. A project id shows that it is one."""
    if isinstance(tip, NotFound) or (
        isinstance(tip, Unknown) and tip.why is Why.UNCLEAR and configured.token_file is None
    ):
        detail = f"base_url is wrong: {getattr(tip, 'reason', 'there is no newest block')}"
        raise Refused("config_invalid", detail, fix=f"Set base_url to the complete URL, such as {example}.")
    if isinstance(tip, Unknown) and tip.why is Why.OUTAGE:
        fix = "Check that its servers run, and that base_url and index_url in [[chain.providers]] are right."
        raise Refused("chain_not_ready", f"no answer: {tip.reason}", fix=fix)


async def _wallet(provider: ChainProvider, base_url: str, settings: Settings) -> CheckResult | None:
    """The wallet's ADA on the chain; None if it cannot be read. An empty wallet is a warning."""
    address = own_address(settings)
    if address is None or not isinstance(read := await provider.utxos(address), Found):
        return None
    lovelace = sum(utxo.lovelace for utxo in read.value)
    if lovelace:
        return CheckResult("wallet", format_ada(lovelace))
    detail = f"it has no ADA, so nothing can be paid. {how_to_fund(settings.network, base_url, address)}"
    return CheckResult("wallet", detail, is_warning=True)


async def _provider(provider: ChainProvider, base_url: str, settings: Settings, now_ms: Callable[[], int]) -> str:
    network, address = settings.network, own_address(settings)
    newest, slot = await usable_tip(provider, network, now_ms)
    if findings := await provider.findings(address or ""):
        raise Refused("chain_not_ready", "; ".join(findings))
    return f"{base_url}: {network}, block {newest.height}, newest block {max(slot - newest.slot, 0)} s old"


async def usable_tip(provider: ChainProvider, network: str, now_ms: Callable[[], int]) -> tuple[BlockSeen, int]:
    """Check that a provider is good enough to sign by. Returns its newest block, and the current slot.

    Refused: `chain_not_ready`, `provider_untrusted`, `clock_skew`.
    """
    newest = require_found("newest block", await provider.tip())
    view = ChainView(NETWORKS[network], tip=newest, problem=None)
    view.learn_genesis(require_found("genesis", await provider.genesis()))
    view.learn_parameters(require_found("parameters", await provider.parameters()))
    off_s = await provider.clock_off_s(now_ms)
    require_right_clock([off_s.value] if isinstance(off_s, Found) else [])  # a fast clock makes blocks look old
    return newest, view.require_in_step(now_ms())
