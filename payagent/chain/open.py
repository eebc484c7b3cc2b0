"""Opens a chain provider by the kind that the config names. To add a kind, write its module and add its line here.

No other module names a provider's class.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from payagent.chain import blockfrost
from payagent.chain.provider import ChainProvider, Found, Read
from payagent.core.problems import Refused
from payagent.secret_file import read_secret_file
from payagent.settings.schema import ProviderSettings

T = TypeVar("T")

KINDS: dict[str, Callable[[str, ProviderSettings, str, str | None], ChainProvider]] = {
    "blockfrost": blockfrost.make
}
"""What makes a provider of each kind: of its name, its settings, the network, and its secret if it needs one."""


@asynccontextmanager
async def opened(
    name: str, settings: ProviderSettings, network: str, read: Callable[[Path], str | None] = read_secret_file
) -> AsyncIterator[ChainProvider]:
    """Make a provider, whose secret `read` reads, and close it at the end."""
    secret = None if settings.project_id_file is None else read(settings.project_id_file)
    provider = KINDS[settings.kind](name, settings, network, secret)
    try:
        yield provider
    finally:
        await provider.aclose()


def require_found(name: str, read: Read[T]) -> T:
    """Return what a provider has found, or refuse its answer (`chain_not_ready`)."""
    if isinstance(read, Found):
        return read.value
    raise Refused("chain_not_ready", f"cannot read its {name}: {getattr(read, 'reason', 'not found')}")
