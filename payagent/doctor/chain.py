"""Checks the providers: do they answer, are they on our network, are they up to date, what has the wallet?

May import: core, secret_file, settings, chain, agent.base.
Never: submits a transaction.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from payagent.agent.base.chain_view import ChainView, require_right_clock
from payagent.chain.blockfrost import Blockfrost
from payagent.chain.provider import Found, Read
from payagent.core.money import format_ada
from payagent.core.network import NETWORKS, faucet_of
from payagent.core.origin import is_blockfrost
from payagent.core.problems import Refused
from payagent.doctor.check_result import CheckResult, own_address
from payagent.secret_file import read_secret_file
from payagent.settings.schema import ProviderSettings, Settings

T = TypeVar("T")


async def check_chain(settings: Settings, now_ms: Callable[[], int]) -> list[CheckResult]:
    """Check every provider: reachable, on our network, newest block and clock in step with ours.

    The first one that passes shows what the wallet has.
    """
    findings: list[CheckResult] = []
    wallet: CheckResult | None = None
    for index, (provider_name, provider) in enumerate(settings.chain.named.items()):
        name = f"provider {index + 1}"
        try:
            async with _connected(provider_name, provider) as blockfrost:
                findings.append(CheckResult(name, await _provider(blockfrost, provider, settings.network, now_ms)))
                wallet = wallet or await _wallet(blockfrost, provider, settings)
        except Refused as refused:
            findings.append(CheckResult(name, f"{provider.base_url}: {refused.detail}", refused))
    return findings if wallet is None else [*findings, wallet]


@asynccontextmanager
async def _connected(name: str, provider: ProviderSettings) -> AsyncIterator[Blockfrost]:
    if provider.project_id_file is None and is_blockfrost(provider.base_url):
        raise Refused("project_id_missing", "Blockfrost answers only with a project id, and there is none")
    project_id = None if provider.project_id_file is None else read_secret_file(provider.project_id_file)
    blockfrost = Blockfrost(name, provider.base_url, project_id)
    try:
        yield blockfrost
    finally:
        await blockfrost.aclose()


async def _wallet(blockfrost: Blockfrost, provider: ProviderSettings, settings: Settings) -> CheckResult | None:
    """The wallet's ADA on the chain; None if it cannot be read. An empty wallet is a warning."""
    address = own_address(settings)
    if address is None or not isinstance(read := await blockfrost.utxos(address), Found):
        return None
    lovelace = sum(utxo.lovelace for utxo in read.value)
    if lovelace:
        return CheckResult("wallet", format_ada(lovelace))
    faucet = faucet_of(settings.network, provider.base_url, address)
    more = "" if faucet is None else f"; test ADA is free: {faucet}"
    return CheckResult(
        "wallet", f"it has no ADA, so nothing can be paid; send some to {address}{more}", is_warning=True
    )


async def _provider(
    blockfrost: Blockfrost, provider: ProviderSettings, network: str, now_ms: Callable[[], int]
) -> str:
    genesis, parameters, tip = (
        await blockfrost.genesis(),
        await blockfrost.parameters(),
        await blockfrost.tip(),
    )
    off_s = await blockfrost.clock_off_s(now_ms)
    is_view_only = await blockfrost.lacks_submit()
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
