"""Addresses: the CIP-19 test vectors, every one-letter change, and pycardano as the oracle."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.hostile_402s import BYRON, bech32
from pycardano import Address as PycardanoAddress
from pycardano import Network as PycardanoNetwork
from pycardano import VerificationKeyHash
from pycardano.crypto.bech32 import Encoding, bech32_encode, convertbits

from payagent.core.address import KEY_BASE, KEY_ENTERPRISE, encode_address, parse_address
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused

MAINNET, PREPROD = NETWORKS["mainnet"], NETWORKS["preprod"]
LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

# CIP-19, test vectors: type -> mainnet, testnet. Types 8 are from its table of examples and the Byron era.
CIP19 = {
    0: (
        "addr1qx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer3n0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgse35a3x",
        "addr_test1qz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer3n0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgs68faae",
    ),
    1: (
        "addr1z8phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gten0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgs9yc0hh",
        "addr_test1zrphkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gten0d3vllmyqwsx5wktcd8cc3sq835lu7drv2xwl2wywfgsxj90mg",
    ),
    2: (
        "addr1yx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzerkr0vd4msrxnuwnccdxlhdjar77j6lg0wypcc9uar5d2shs2z78ve",
        "addr_test1yz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzerkr0vd4msrxnuwnccdxlhdjar77j6lg0wypcc9uar5d2shsf5r8qx",
    ),
    3: (
        "addr1x8phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gt7r0vd4msrxnuwnccdxlhdjar77j6lg0wypcc9uar5d2shskhj42g",
        "addr_test1xrphkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gt7r0vd4msrxnuwnccdxlhdjar77j6lg0wypcc9uar5d2shs4p04xh",
    ),
    4: (
        "addr1gx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer5pnz75xxcrzqf96k",
        "addr_test1gz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzer5pnz75xxcrdw5vky",
    ),
    5: (
        "addr128phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtupnz75xxcrtw79hu",
        "addr_test12rphkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtupnz75xxcryqrvmw",
    ),
    6: (
        "addr1vx2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzers66hrl8",
        "addr_test1vz2fxv2umyhttkxyxp8x0dlpdt3k6cwng5pxj3jhsydzerspjrlsz",
    ),
    7: (
        "addr1w8phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtcyjy7wx",
        "addr_test1wrphkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtcl6szpr",
    ),
    8: (BYRON[0], BYRON[1]),
    14: (
        "stake1uyehkck0lajq8gr28t9uxnuvgcqrc6070x3k9r8048z8y5gh6ffgw",
        "stake_test1uqehkck0lajq8gr28t9uxnuvgcqrc6070x3k9r8048z8y5gssrtvn",
    ),
    15: (
        "stake178phkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtcccycj5",
        "stake_test17rphkx6acpnf78fuvxn0mkew3l0fd058hzquvz7w36x4gtcljw6kf",
    ),
}
CODES = {
    1: "address_invalid/script",
    2: "address_invalid/script",
    3: "address_invalid/script",
    4: "address_invalid/pointer",
    5: "address_invalid/pointer",
    7: "address_invalid/script",
    8: "address_invalid/byron",
    14: "address_invalid/stake",
    15: "address_invalid/stake",
}


def code_of(value: object, network: str = "preprod") -> str:
    with pytest.raises(Refused) as caught:
        parse_address(value, NETWORKS[network])
    return caught.value.name


@pytest.mark.parametrize("kind", [0, 6])
def test_cip_19_key_addresses_are_accepted_on_their_own_network_only(kind: int) -> None:
    for text, network, other in zip(CIP19[kind], (MAINNET, PREPROD), (PREPROD, MAINNET), strict=True):
        address = parse_address(text, network)
        assert address.text == str(address) == text
        assert address.raw == bytes(PycardanoAddress.from_primitive(text))
        assert address.payment_key_hash == bytes(PycardanoAddress.from_primitive(text).payment_part)
        assert encode_address(address.raw) == address
        assert code_of(text, other.name) == "address_invalid/wrong_network"


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_cip_19_addresses_that_cannot_be_paid_are_refused_with_their_code(kind: int, code: str) -> None:
    for text in CIP19[kind]:
        for network in NETWORKS:
            assert code_of(text, network) == code


@given(
    payment=st.binary(min_size=28, max_size=28),
    stake=st.none() | st.binary(min_size=28, max_size=28),
    network=st.sampled_from(sorted(NETWORKS)),
)
def test_pycardano_encodes_the_same_text_and_bytes(payment: bytes, stake: bytes | None, network: str) -> None:
    theirs = PycardanoAddress(
        VerificationKeyHash(payment),
        VerificationKeyHash(stake) if stake is not None else None,
        PycardanoNetwork.MAINNET if network == "mainnet" else PycardanoNetwork.TESTNET,
    )
    ours = parse_address(str(theirs), NETWORKS[network])
    assert ours.raw == bytes(theirs)
    assert ours.raw[0] >> 4 == (KEY_BASE if stake is not None else KEY_ENTERPRISE)
    assert encode_address(ours.raw).text == str(theirs)


@pytest.mark.parametrize("text", [CIP19[0][1], CIP19[6][1]])
def test_an_address_with_one_changed_letter_is_refused(text: str) -> None:
    for position, letter in enumerate(text):
        for other in LETTERS + "1b_":
            if other != letter:
                assert code_of(text[:position] + other + text[position + 1 :]) in (
                    "address_invalid/bad_checksum",
                    "address_invalid/wrong_prefix",
                )


@pytest.mark.parametrize("text", [CIP19[0][1], CIP19[6][1]])
def test_every_letter_left_out_inserted_or_swapped_is_refused(text: str) -> None:
    damaged = {text[:position] + text[position + 1 :] for position in range(len(text))}
    damaged |= {
        text[:position] + letter + text[position:] for position in range(len(text) + 1) for letter in "qpl1"
    }
    damaged |= {
        text[:position] + text[position + 1] + text[position] + text[position + 2 :]
        for position in range(len(text) - 1)
    }
    for wrong in damaged - {text}:
        assert code_of(wrong).startswith("address_")


@given(st.binary(min_size=1, max_size=70), st.sampled_from(["addr_test", "addr", "stake_test", "foo"]))
def test_only_key_addresses_of_the_network_are_accepted_of_any_bytes(raw: bytes, prefix: str) -> None:
    payable = prefix == "addr_test" and (raw[0], len(raw)) in ((0x00, 57), (0x60, 29))
    try:
        address = parse_address(bech32(prefix, raw), PREPROD)
    except Refused:
        assert not payable
    else:
        assert payable
        assert address.raw == raw


def test_only_two_header_bytes_are_accepted_at_either_length() -> None:
    for header, size in product(range(256), (29, 57)):
        text = bech32("addr_test", bytes([header]) + b"\x11" * (size - 1))
        if (header, size) in ((0x00, 57), (0x60, 29)):
            assert parse_address(text, PREPROD).text == text
        else:
            assert code_of(text).startswith("address_")


@pytest.mark.parametrize("kind", range(16))
def test_every_address_type_that_cannot_be_paid_is_refused_with_its_code(kind: int) -> None:
    text = bech32("addr_test", bytes([kind << 4]) + b"\x11" * 40)
    assert code_of(text) == CODES.get(
        kind, "address_invalid/wrong_length" if kind in (0, 6) else "address_invalid/unknown_type"
    )


def test_a_stake_prefix_is_refused_as_a_stake_address_whatever_follows() -> None:
    assert code_of(bech32("stake_test", b"\x00" + b"\x11" * 56)) == "address_invalid/stake"


@pytest.mark.parametrize(("prefix", "header"), [("addr", 0x00), ("addr_test", 0x01), ("addr_test", 0x02)])
def test_a_prefix_that_contradicts_the_network_byte_is_refused_on_every_network(prefix: str, header: int) -> None:
    for network in NETWORKS:
        assert code_of(bech32(prefix, bytes([header]) + b"\x11" * 56), network) == "address_invalid/wrong_prefix"


@given(st.text(max_size=120) | st.text(LETTERS + "1", max_size=120).map(lambda data: "addr_test1" + data))
def test_any_text_that_is_no_address_is_refused_with_an_address_code(text: str) -> None:
    assert code_of(text).startswith("address_")


@pytest.mark.parametrize("value", [None, 5, True, b"addr", ["addr"], {"address": "addr"}, 1.5])
def test_a_value_that_is_not_text_is_refused(value: object) -> None:
    assert code_of(value) == "address_invalid/not_text"


def test_an_empty_address_is_refused_as_empty() -> None:
    with pytest.raises(Refused, match="not empty"):
        parse_address("", PREPROD)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a" * 201, "address_invalid/not_text"),
        ("a" * 200, "address_invalid/wrong_prefix"),
        ("addr_test1 qq", "address_invalid/not_text"),
        ("addr_test1q\u00e4", "address_invalid/not_text"),
        ("addr_test1q\x7f", "address_invalid/not_text"),
        ("aB", "address_invalid/byron"),
        *((f"{start}1aB", "address_invalid/byron") for start in ("Ae", "Dd", "37", "2c")),
        ("Ae1aB0", "address_invalid/mixed_case"),
        ("AF1aB", "address_invalid/mixed_case"),
        (CIP19[0][1].upper(), "address_invalid/mixed_case"),
    ],
)
def test_each_kind_of_malformed_address_has_its_code(text: str, code: str) -> None:
    assert code_of(text) == code


@pytest.mark.parametrize("padding", range(1, 16))
def test_one_address_has_one_spelling(padding: int) -> None:
    values = convertbits([0x00, *[0x11] * 56], 8, 5)
    assert parse_address(bech32_encode("addr_test", values, Encoding.BECH32), PREPROD).raw[0] == 0
    values[-1] |= padding
    assert code_of(bech32_encode("addr_test", values, Encoding.BECH32)) == "address_invalid/bad_checksum"
