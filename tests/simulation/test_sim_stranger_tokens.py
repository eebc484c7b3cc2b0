"""Formerly failing seeds in which strangers send datums and as many unwanted tokens as an output can hold.

They were found before seeds had strangers of their own, and are kept as they were: every UTxO is from a stranger.
"""

from collections.abc import Mapping
from random import Random

import pytest
from kit.effort import pick
from kit.simulation import require_clean

from payagent.core.money import LOVELACE_PER_ADA, MAX_UNITS
from payagent.devnet import cbor, ledger
from sim.run import run_share

FAILED_ONCE = pick([1018, 1346], [1018, 1027, 1067, 1244, 1339, 1346])
TOKENS = [(bytes([policy]) * 28 + b"A" * name).hex() for policy in range(1, 9) for name in (0, 3, 32)]


def stranger(
    address: bytes,
    lovelace: int,
    _assets: Mapping[str, int],
    _datum_hash: bytes | None,
    _script: bytes | None,
    number: int,
) -> bytes:
    """A faucet transaction as the devnet makes it, plus what a stranger may put into its output."""
    rnd = Random(number * 7919 + lovelace)
    count = min(rnd.choice([0, 0, 0, 1, 1, 5, 12]), max(0, lovelace // LOVELACE_PER_ADA * 2 - 4))
    names = sorted(rnd.sample(TOKENS, count))
    assets = {name: rnd.choice([1, 10**6, MAX_UNITS, MAX_UNITS, 2**62]) for name in names}
    has_datum = rnd.random() < 0.15
    value = cbor.head(cbor.UINT, lovelace)
    if assets:
        value = b"\x82" + value + ledger._assets_bytes(assets)
    output = bytes([0x82 + has_datum]) + cbor.byte_string(address) + value
    output += cbor.byte_string(bytes(32)) if has_datum else b""
    label, text = cbor.head(cbor.UINT, 674), cbor.text_string("faucet")
    aux = b"\xa1" + label + b"\xa1" + text + cbor.head(cbor.UINT, number)
    body = b"\xa4\x00\x80\x01\x81" + output + b"\x02\x00\x07" + cbor.byte_string(ledger.hash_256(aux))
    return b"\x84" + body + b"\xa0\xf5" + aux


@pytest.fixture(autouse=True)
def _strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_faucet_bytes", stranger)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", FAILED_ONCE)
def test_no_formerly_failing_seed_with_stranger_tokens_fails_again(seed: int) -> None:
    require_clean(run_share(range(seed, seed + 1)))
