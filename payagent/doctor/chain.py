"""Checks the providers: do they answer, are they on our network, and are they up to date?

May import: core, secret_file, settings, chain, agent.base.
Never: submits a transaction.
"""

from collections.abc import Callable
from typing import TypeVar

from payagent.agent.base.chain_view import ChainView, require_right_clock
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.provider import Found, Read
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult
from payagent.secret_file import read_secret_file
from payagent.settings.schema import ProviderSettings, Settings

T = TypeVar("T")


async def check_chain(settings: Settings, now_ms: Callable[[], int]) -> list[CheckResult]:
    """Check every provider: reachable, on our network, newest block and clock in step with ours."""
    findings = []
    for index, (provider_name, provider) in enumerate(settings.chain.named.items()):
        name = f"provider {index + 1}"
        try:
            findings.append(CheckResult(name, await _provider(provider, provider_name, settings.network, now_ms)))
        except Refused as refused:
            findings.append(CheckResult(name, f"{provider.base_url}: {refused.detail}", refused))
    return findings


async def _provider(provider: ProviderSettings, name: str, network: str, now_ms: Callable[[], int]) -> str:
    project_id = None if provider.project_id_file is None else read_secret_file(provider.project_id_file)
    blockfrost = Blockfrost(name, provider.base_url, project_id)
    try:
        genesis, parameters, tip = (
            await blockfrost.genesis(),
            await blockfrost.parameters(),
            await blockfrost.tip(),
        )
        off_s = await blockfrost.clock_off_s(now_ms)
        is_view_only = await blockfrost.lacks_submit()
    finally:
        await blockfrost.aclose()
    newest = _value("newest block", tip)
    view = ChainView(NETWORKS[network])
    view.learn_genesis(_value("genesis", genesis))
    view.learn_parameters(_value("parameters", parameters))
    view.tip, view.problem = newest, None
    require_right_clock([off_s.value] if isinstance(off_s, Found) else [])  # a fast clock makes blocks look old
    slot = view.require_in_step(now_ms())
    if is_view_only:
        raise Refused("chain_not_ready", "it has no /tx/submit: serve cardano-submit-api at the same address")
    return (
        f"{provider.base_url}: {network}, block {newest.height}, newest block {max(slot - newest.slot, 0)} s old"
    )


def _value(name: str, read: Read[T]) -> T:
    if isinstance(read, Found):
        return read.value
    raise Refused("chain_not_ready", f"cannot read its {name}: {getattr(read, 'reason', 'not found')}")
