"""Keys: derivation agrees with pycardano, signatures verify with libsodium, and no text shows a secret."""

import copy
import logging
import pickle
import random
from pathlib import Path

import pycardano
import pytest
from kit.wallet import SIGNER, signer_of
from nacl.bindings import crypto_sign_open

from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.wallet.keys import Seed, SoftwareSigner, derive, seed_from_words
from payagent.wallet.new_keystore import create

WORDS = "abandon " * 23 + "art"
MORE = [Seed(random.Random(seed).randbytes(32)).words for seed in range(4)]


@pytest.mark.parametrize("words", [WORDS, *MORE])
@pytest.mark.parametrize(("name", "account"), [("mainnet", 0), ("preprod", 0), ("devnet", 7)])
def test_the_derived_address_and_key_equal_pycardanos(words: str, name: str, account: int) -> None:
    wallet = pycardano.HDWallet.from_mnemonic(words)
    keys = [
        pycardano.ExtendedSigningKey.from_hdwallet(wallet.derive_from_path(f"m/1852'/1815'/{account}'/{role}/0"))
        for role in (0, 2)
    ]
    network = pycardano.Network.MAINNET if name == "mainnet" else pycardano.Network.TESTNET
    hashes = [key.to_verification_key().hash() for key in keys]
    ours = derive(seed_from_words(words), NETWORKS[name], account)
    assert ours.address.text == str(pycardano.Address(*hashes, network=network))
    assert ours.signer.payment_key_hash == bytes(hashes[0]) == ours.address.payment_key_hash
    assert SoftwareSigner.sign_hash(ours.signer, b"x" * 32) == keys[0].sign(b"x" * 32)


def test_signatures_verify_and_are_deterministic() -> None:
    for number in range(50):
        signer, message = signer_of(number), bytes([number]) * 32
        assert crypto_sign_open(signer.sign_hash(message) + message, signer.public_key) == message
        assert signer.sign_hash(message) == signer.sign_hash(message)
        assert signer.sign_hash(message) != SIGNER.sign_hash(message) or number == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "abandon " * 24,
        "abandon " * 11 + "about",
        "abandon " * 22 + "art",
        "abandon " * 23 + "zzzz",
        "abandon " * 24 + "art",
        "abandon " * 23 + "àrt",
        "あいこくしん " * 24,
    ],
)
def test_invalid_recovery_words_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(Refused) as caught:
        seed_from_words(text)
    assert caught.value.name == "mnemonic_invalid"
    assert "abandon" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_white_space_and_case_of_recovery_words_do_not_matter() -> None:
    assert seed_from_words("  " + WORDS.upper().replace(" ", "\n  ") + "\n").words == WORDS


def test_signer_seed_and_account_show_no_secret_and_cannot_be_copied() -> None:
    seed = seed_from_words(WORDS)
    account = derive(seed, NETWORKS["preprod"])
    extended = bytes(range(64))
    signer = SoftwareSigner(extended)
    shown = [repr(signer), str(signer), f"{signer}", repr(seed), str(seed), repr(account), repr([account, seed])]
    assert shown[:3] == ["SoftwareSigner()"] * 3
    for text in shown:
        assert "abandon" not in text
        assert seed.entropy.hex() not in text
        assert extended[:32].hex() not in text
        assert repr(extended[:8])[2:-1] not in text
    for secret in (signer, seed, account.signer):
        assert not hasattr(secret, "__dict__")
        for copying in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                copying(secret)


def test_pycardanos_logger_is_silent_after_a_wallet_is_created(tmp_path: Path) -> None:
    create(tmp_path / "keystore.json", WORDS, "a passphrase", NETWORKS["preprod"], scrypt_n=16)
    logger = logging.getLogger("PyCardano")
    assert logger.handlers == []
    assert not logger.propagate
    assert not logger.isEnabledFor(logging.WARNING)
