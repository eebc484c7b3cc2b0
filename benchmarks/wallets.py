"""Wallets of every size, and the payment that all builders make from them: payTo, two splits, change.

May import: payagent's core and wallet; nothing more, as `tests/counts` counts the instructions of `pay`.
Never: measures.
"""

import hashlib
import random

from payagent.core.address import Address, encode_address
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.wallet.keys import SoftwareSigner
from payagent.wallet.transaction import TxPlan, check, select
from payagent.wallet.utxo_index import Utxo, UtxoIndex
from sim.signing import sign

TOKEN = hashlib.blake2b(b"policy", digest_size=28).hexdigest() + b"TOKEN".hex()
ASSETS = {"ada": LOVELACE, "token": TOKEN}
UNITS = {"ada": 10_000_000, "token": 5_000}
TTL_SLOT = 150_000_000
NETWORK_ID = 0


def _extended_key() -> bytes:
    """64 bytes, clamped as BIP32-Ed25519 has it."""
    key = bytearray(hashlib.sha512(b"benchmark").digest())
    key[0] &= 0xF8
    key[31] = key[31] & 0x1F | 0x40
    return bytes(key)


KEY = _extended_key()
SIGNER = SoftwareSigner(KEY)


def _address(payment_key_hash: bytes, number: int) -> Address:
    stake_key_hash = hashlib.blake2b(b"%d" % number, digest_size=28).digest()
    return encode_address(bytes([NETWORK_ID]) + payment_key_hash + stake_key_hash)


OWN = _address(SIGNER.payment_key_hash, 0)
PAYEES = [_address(hashlib.blake2b(b"payee %d" % n, digest_size=28).digest(), n) for n in range(3)]


def wallet(size: int, asset: str) -> list[Utxo]:
    """One coin pays alone; of the others a tenth hold 20 assets each, a tenth the token, the rest ADA."""
    rnd = random.Random(size)
    junk = [rnd.randbytes(28).hex() + rnd.randbytes(8).hex() for _ in range(200)]
    alone = ((TOKEN, 1_000_000),) if asset == "token" else ()
    utxos = [Utxo(rnd.randbytes(32).hex(), 0, 100_000_000, alone)]
    for place in range(1, size):
        assets: tuple[tuple[str, int], ...] = ()
        if place % 10 == 1:
            assets = tuple((name, rnd.randrange(1, 10**9)) for name in rnd.sample(junk, 20))
        elif place % 10 == 2:
            assets = ((TOKEN, rnd.randrange(1, 1000)),)
        utxos.append(Utxo(rnd.randbytes(32).hex(), place % 4, rnd.randrange(5_000_000, 15_000_000), assets))
    return utxos


def outputs(asset: str) -> list[Output]:
    shares = (UNITS[asset], UNITS[asset] // 5, UNITS[asset] // 10)
    return [
        Output("split" if n else "pay_to", to, ASSETS[asset], units)
        for n, (to, units) in enumerate(zip(PAYEES, shares, strict=True))
    ]


def build(utxos: UtxoIndex, asked: list[Output]) -> bytes:
    """What the peers do: select, build, sign."""
    return sign(_plan(utxos, asked), SIGNER)


def pay(utxos: UtxoIndex, asked: list[Output]) -> bytes:
    """What the daemon does: `build`, and then read the bytes again and compare."""
    plan = _plan(utxos, asked)
    tx = sign(plan, SIGNER)
    check(tx, plan, SIGNER.public_key)
    return tx


def _plan(utxos: UtxoIndex, asked: list[Output]) -> TxPlan:
    return select(utxos, asked, change=OWN, ttl_slot=TTL_SLOT, network_id=NETWORK_ID)
