"""Opens a chain provider by the kind that the config names. To add a kind, write its module and add its line here.

No other module names a kind or its class: settings, init, doctor, backup and restore ask its `ProviderKind`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from payagent.chain import blockfrost, koios, ogmios_kupo
from payagent.chain.provider import ChainProvider, Found, ProviderKind, Read, T
from payagent.core.problems import Refused
from payagent.secret_file import read_secret_file
from payagent.settings.schema import ProviderSettings

KINDS: dict[str, ProviderKind] = {
    "blockfrost": blockfrost.KIND,
    "koios": koios.KIND,
    "ogmios-kupo": ogmios_kupo.KIND,
}

NAMED_BY_URL = "blockfrost"
"""The kind of a provider of which `payagent init` is told only the URL."""

OFFERED = "koios"
"""The kind that `payagent init` offers first. It needs no account."""


def kind_of(name: str, settings: ProviderSettings) -> ProviderKind:
    """Return the kind of a provider. Refused: `config_invalid` if it is unknown, or cannot have this base URL."""
    if settings.kind not in KINDS:
        raise Refused("config_invalid", f"provider {name}: kind: write one of {', '.join(KINDS)}")
    try:
        KINDS[settings.kind].parse_url(settings.base_url)
    except ValueError as error:
        raise Refused("config_invalid", f"provider {name}: base_url: {error}") from None
    kind = KINDS[settings.kind]
    if (settings.index_url is not None) is not bool(kind.index_urls):
        fix = "write the URL of its index" if kind.index_urls else "leave it out"
        raise Refused("config_invalid", f"provider {name}: index_url: {fix}")
    return kind


def chosen(text: str, network: str) -> ProviderSettings:
    """Return the provider that a kind or a base URL names on a network. Raises ValueError, with what to write."""
    for name, kind in KINDS.items():
        url = kind.urls[network]
        if text == name or text.rstrip("/") == url:
            return ProviderSettings(kind=name, base_url=url, index_url=kind.index_urls.get(network))
    if "://" not in text:
        raise ValueError(f"write one of {', '.join(KINDS)}, or a base URL")
    return ProviderSettings(kind=NAMED_BY_URL, base_url=KINDS[NAMED_BY_URL].parse_url(text))


def needs_token(provider: ProviderSettings) -> bool:
    """Whether its server answers only with a token."""
    return KINDS[provider.kind].needs_secret(provider.base_url)


@asynccontextmanager
async def opened(
    name: str, settings: ProviderSettings, network: str, read: Callable[[Path], str | None] = read_secret_file
) -> AsyncIterator[ChainProvider]:
    """Make a provider, whose secret `read` reads, and close it at the end."""
    secret = None if settings.token_file is None else read(settings.token_file)
    provider = kind_of(name, settings).make(name, settings, network, secret)
    try:
        yield provider
    finally:
        await provider.aclose()


def require_found(name: str, read: Read[T]) -> T:
    """Return what a provider has found, or refuse its answer (`chain_not_ready`)."""
    if isinstance(read, Found):
        return read.value
    raise Refused("chain_not_ready", f"cannot read its {name}: {getattr(read, 'reason', 'not found')}")
