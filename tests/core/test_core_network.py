"""Networks: only the known names, case-sensitive; slots agree with the times of known blocks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.address import encode_address, parse_address
from payagent.core.network import NETWORKS, SLOT_CLOCKS, Network, how_to_fund, parse_chain, require_chain
from payagent.core.problems import Refused


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("cardano-mainnet", "mainnet"),
        ("cardano:mainnet", "mainnet"),
        ("cip34:1-764824073", "mainnet"),
        ("cardano-preprod", "preprod"),
        ("cardano:preprod", "preprod"),
        ("cip34:0-1", "preprod"),
        ("cardano-preview", "preview"),
        ("cardano:preview", "preview"),
        ("cip34:0-2", "preview"),
        ("cardano-devnet", "devnet"),
        ("cardano:devnet", "devnet"),
    ],
)
def test_every_alias_names_one_network(alias: str, name: str) -> None:
    assert parse_chain(alias) is NETWORKS[name]


@pytest.mark.parametrize(
    "value",
    [
        "cardano",
        "mainnet",
        "preprod",
        "Cardano-Mainnet",
        "cardano-mainnet ",
        "cardano:1",
        "base",
        "",
        None,
        1,
        ["x"],
        {},
    ],
)
def test_an_unknown_chain_name_is_refused(value: object) -> None:
    with pytest.raises(Refused) as caught:
        parse_chain(value)
    assert caught.value.name == "invoice_invalid/chain"


def test_preview_is_not_preprod_although_their_addresses_look_alike() -> None:
    require_chain("cardano-preview", NETWORKS["preview"])
    for other in ("cardano-preprod", "cardano-mainnet", "cardano-devnet"):
        with pytest.raises(Refused) as caught:
            require_chain(other, NETWORKS["preview"])
        assert caught.value.name == "network_mismatch"


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())
def test_an_address_shows_mainnet_or_a_test_network(network: Network) -> None:
    address = encode_address(bytes([0x60 | network.network_id]) + bytes(28))
    assert address.text.startswith("addr1" if network.name == "mainnet" else "addr_test1")
    assert parse_address(address.text, network) == address


@pytest.mark.parametrize(
    ("network", "slot", "time_s"),
    [
        # The first slots of Shelley, and slots from the networks' genesis files and epoch lengths.
        ("mainnet", 4_492_800, 1_596_059_091),
        ("mainnet", 133_660_799, 1_725_227_090),  # the last slot before epoch 507, 2024-09-01 21:44:50 UTC
        ("preprod", 86_400, 1_655_769_600),
        ("preview", 0, 1_666_656_000),
    ],
)
def test_slots_match_known_block_times(network: str, slot: int, time_s: int) -> None:
    clock = SLOT_CLOCKS[network]
    assert clock.slot_at(time_s * 1000) == slot
    assert clock.slot_at(time_s * 1000 + 999) == slot
    assert clock.slot_at(time_s * 1000 - 1) == slot - 1
    assert clock.time_ms(slot) == time_s * 1000


@given(st.sampled_from(sorted(SLOT_CLOCKS)), st.integers(0, 2**40))
def test_the_start_time_of_a_slot_is_in_that_slot(network: str, slot: int) -> None:
    clock = SLOT_CLOCKS[network]
    assert clock.slot_at(clock.time_ms(slot)) == slot


def test_every_test_network_has_a_faucet_and_mainnet_has_none() -> None:
    chain = "http://127.0.0.1:3000/api/v0"
    assert "\n  curl -s http://127.0.0.1:3000/devnet/faucet " in how_to_fund("devnet", chain, "addr_test1x")
    assert how_to_fund("preprod", chain, "addr_test1x") == how_to_fund("preview", chain, "addr_test1x")
    assert how_to_fund("mainnet", chain, "addr1x") == "Send ADA to addr1x."
