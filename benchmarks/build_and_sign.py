"""How long the wallet takes to select, build, sign and check one payment, by the size of the wallet.

Run `python benchmarks/build_and_sign.py`; it prints medians, and how many times longer stock pycardano takes to
build and sign the same payment from the small wallets. payTo and two splits, change, one coin that pays alone.
"""

import hashlib
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

from payagent.core.address import Address, encode_address
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.wallet.coins import Coin, Coins
from payagent.wallet.keys import SoftwareSigner
from payagent.wallet.transaction import check, select, sign

SIZES = (1, 10, 100, 1_000, 10_000)
STOCK_SIZES = (1, 10, 100)
TOKEN = hashlib.blake2b(b"policy", digest_size=28).hexdigest() + b"TOKEN".hex()
TTL_SLOT = 150_000_000
KEY = bytearray(hashlib.sha512(b"benchmark").digest())
KEY[0] &= 0xF8
KEY[31] = KEY[31] & 0x1F | 0x40
SIGNER = SoftwareSigner(bytes(KEY))


def address(payment: bytes, number: int) -> Address:
    return encode_address(b"\x00" + payment + hashlib.blake2b(b"%d" % number, digest_size=28).digest())


OWN = address(SIGNER.payment_key_hash, 0)
PAYEES = [address(hashlib.blake2b(b"payee %d" % n, digest_size=28).digest(), n) for n in range(3)]


def wallet(size: int) -> list[Coin]:
    """One coin that pays alone; of the others a tenth with 20 assets, a tenth with the token, the rest ADA."""
    rnd = random.Random(size)
    junk = [rnd.randbytes(28).hex() + rnd.randbytes(8).hex() for _ in range(200)]
    coins = [Coin(rnd.randbytes(32).hex(), 0, 100_000_000, ((TOKEN, 1_000_000),))]
    for place in range(1, size):
        assets: tuple[tuple[str, int], ...] = ()
        if place % 10 == 1:
            assets = tuple((name, rnd.randrange(1, 10**9)) for name in rnd.sample(junk, 20))
        elif place % 10 == 2:
            assets = ((TOKEN, rnd.randrange(1, 1000)),)
        coins.append(Coin(rnd.randbytes(32).hex(), place % 4, rnd.randrange(5_000_000, 15_000_000), assets))
    return [*coins, Coin(rnd.randbytes(32).hex(), 0, 100_000_000)]


def outputs(asset: str, units: int) -> list[Output]:
    shares = (units, units // 5, units // 10)
    return [
        Output("split" if n else "pay_to", to, asset, s)
        for n, (to, s) in enumerate(zip(PAYEES, shares, strict=True))
    ]


def median_ms(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def ours(coins: Coins, asked: list[Output]) -> Callable[[], object]:
    def work() -> None:
        plan = select(coins, asked, change=OWN, ttl_slot=TTL_SLOT, network_id=0)
        check(sign(plan, SIGNER), plan, SIGNER.public_key)

    return work


def stock(coins: list[Coin], asked: list[Output]) -> Callable[[], object]:
    """The same payment by pycardano's builder, its objects for the coins made beforehand."""
    import pycardano

    def value(lovelace: int, assets: tuple[tuple[str, int], ...]) -> Any:
        policies: dict[bytes, dict[bytes, int]] = {}
        for name, units in assets:
            policies.setdefault(bytes.fromhex(name[:56]), {})[bytes.fromhex(name[56:])] = units
        return pycardano.Value(lovelace, pycardano.MultiAsset.from_primitive(policies)) if policies else lovelace

    parameters = dict.fromkeys(pycardano.ProtocolParameters.__dataclass_fields__, 0) | {
        "min_fee_coefficient": 44,
        "min_fee_constant": 155_381,
        "coins_per_utxo_byte": 4_310,
        "max_tx_size": 16_384,
        "max_val_size": 5_000,
        "maximum_reference_scripts_size": None,
    }

    class Context(pycardano.ChainContext):  # type: ignore[misc]
        protocol_param = pycardano.ProtocolParameters(**parameters)
        network, epoch, last_block_slot, genesis_param = pycardano.Network.TESTNET, 1, TTL_SLOT - 1000, None

        def _utxos(self, _: str) -> Any:
            return [
                pycardano.UTxO(
                    pycardano.TransactionInput(pycardano.TransactionId(bytes.fromhex(coin.tx_id)), coin.index),
                    pycardano.TransactionOutput(own, value(coin.lovelace, coin.assets)),
                )
                for coin in coins
            ]

    own = pycardano.Address.from_primitive(OWN.raw)
    context = Context()
    unspent = context._utxos("")
    public = pycardano.PaymentVerificationKey.from_primitive(SIGNER.public_key)
    extended = pycardano.PaymentExtendedSigningKey(bytes(KEY) + public.payload + bytes(32))
    payments = [
        pycardano.TransactionOutput(
            pycardano.Address.from_primitive(output.address.raw),
            output.units if output.asset == LOVELACE else value(1_300_000, ((TOKEN, output.units),)),
        )
        for output in asked
    ]

    def work() -> None:
        builder = pycardano.TransactionBuilder(context)
        builder.potential_inputs.extend(unspent)
        for payment in payments:
            builder.add_output(payment)
        builder.ttl = TTL_SLOT
        builder.build_and_sign([extended], own)

    return work


def main() -> None:
    print(f"{'coins':>6} {'asset':>6} {'payagent ms':>12} {'pycardano ms':>13} {'ratio':>6}")
    for asset, units in (("ada", 10_000_000), ("token", 5_000)):
        for size in SIZES:
            coins = wallet(size)
            asked = outputs(LOVELACE if asset == "ada" else TOKEN, units)
            mine = median_ms(ours(Coins(coins), asked), 300)
            line = f"{size:>6} {asset:>6} {mine:>12.3f}"
            if size in STOCK_SIZES:
                theirs = median_ms(stock(coins, asked), 5)
                line += f" {theirs:>13.1f} {theirs / mine:>6.0f}"
            print(line)


if __name__ == "__main__":
    main()
