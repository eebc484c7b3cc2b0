"""The kinds of chain providers: what a config may name, and what a base URL needs."""

import pytest

from payagent.chain.open import KINDS, NAMED_BY_URL, kind_of
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.settings.schema import ProviderSettings


def test_an_unknown_kind_is_refused_with_the_kinds_that_there_are() -> None:
    settings = ProviderSettings(kind="blockfrots", base_url="http://127.0.0.1:1/api/v0")
    with pytest.raises(Refused, match="provider blockfrots-1: kind: write one of blockfrost") as refused:
        kind_of("blockfrots-1", settings)
    assert refused.value.code == "config_invalid"


@pytest.mark.parametrize(
    "url", ["https://cardano-preprod.blockfrost.io", "https://cardano-preprod.blockfrost.io/api/v0/v0"]
)
def test_a_base_url_that_its_kind_cannot_have_is_refused(url: str) -> None:
    with pytest.raises(Refused, match="provider blockfrost-1: base_url: write https://") as refused:
        kind_of("blockfrost-1", ProviderSettings(kind="blockfrost", base_url=url))
    assert refused.value.code == "config_invalid"


def test_the_first_kind_suggests_a_url_for_each_network_and_knows_which_need_a_secret() -> None:
    kind = KINDS[NAMED_BY_URL]
    assert kind.urls.keys() == NETWORKS.keys()
    for network, url in kind.urls.items():
        assert kind_of("p", ProviderSettings(kind=NAMED_BY_URL, base_url=url)) is kind
        assert kind.parse_url(f"{url}/") == url
        assert kind.needs_secret(url) is (network != "devnet")
    assert not kind.needs_secret("https://blockfrost.io.example/api/v0")
