"""Checks the providers: do they answer, are they on our network, are they up to date, what has the wallet?

Never: submits a transaction.
"""

from collections.abc import Callable

from payagent.agent.base.chain_view import ChainView, require_right_clock
from payagent.chain.open import opened, require_found
from payagent.chain.provider import ChainProvider, Found
from payagent.core.money import format_ada
from payagent.core.network import NETWORKS, faucet_of
from payagent.core.origin import is_blockfrost
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, own_address
from payagent.settings.schema import Settings


async def check_chain(settings: Settings, now_ms: Callable[[], int]) -> list[CheckResult]:
    """Check every provider: reachable, on our network, newest block and clock in step with ours.

    The first one that passes shows what the wallet has.
    """
    findings: list[CheckResult] = []
    wallet: CheckResult | None = None
    for index, (name, configured) in enumerate(settings.chain.named.items(), 1):
        try:
            if configured.project_id_file is None and is_blockfrost(configured.base_url):
                raise Refused("project_id_missing", "Blockfrost answers only with a project id, and there is none")
            async with opened(name, configured, settings.network) as provider:
                answer = await _provider(provider, configured.base_url, settings.network, now_ms)
                findings.append(CheckResult(f"provider {index}", answer))
                wallet = wallet or await _wallet(provider, configured.base_url, settings)
        except Refused as refused:
            findings.append(CheckResult(f"provider {index}", f"{configured.base_url}: {refused.detail}", refused))
    return findings if wallet is None else [*findings, wallet]


async def _wallet(provider: ChainProvider, base_url: str, settings: Settings) -> CheckResult | None:
    """The wallet's ADA on the chain; None if it cannot be read. An empty wallet is a warning."""
    address = own_address(settings)
    if address is None or not isinstance(read := await provider.utxos(address), Found):
        return None
    lovelace = sum(utxo.lovelace for utxo in read.value)
    if lovelace:
        return CheckResult("wallet", format_ada(lovelace))
    faucet = faucet_of(settings.network, base_url, address)
    more = "" if faucet is None else f"; test ADA is free: {faucet}"
    return CheckResult(
        "wallet", f"it has no ADA, so nothing can be paid; send some to {address}{more}", is_warning=True
    )


async def _provider(provider: ChainProvider, base_url: str, network: str, now_ms: Callable[[], int]) -> str:
    genesis, parameters, tip = (
        await provider.genesis(),
        await provider.parameters(),
        await provider.tip(),
    )
    off_s = await provider.clock_off_s(now_ms)
    submissions = await provider.takes_submissions()
    newest = require_found("newest block", tip)
    view = ChainView(NETWORKS[network])
    view.learn_genesis(require_found("genesis", genesis))
    view.learn_parameters(require_found("parameters", parameters))
    view.tip, view.problem = newest, None
    require_right_clock([off_s.value] if isinstance(off_s, Found) else [])  # a fast clock makes blocks look old
    slot = view.require_in_step(now_ms())
    if submissions == Found(False):
        raise Refused("chain_not_ready", "it has no /tx/submit: serve cardano-submit-api at the same address")
    return f"{base_url}: {network}, block {newest.height}, newest block {max(slot - newest.slot, 0)} s old"
