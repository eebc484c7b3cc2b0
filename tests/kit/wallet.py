"""Random wallets and invoices, by seed: plausible UTxOs and quantities at their bounds."""

import hashlib
import random
from collections.abc import Iterable

from payagent.core.address import Address, encode_address
from payagent.core.invoice import Output
from payagent.core.money import LOVELACE
from payagent.wallet.keys import SoftwareSigner
from payagent.wallet.transaction import TxParameters, min_lovelace
from payagent.wallet.utxo_index import Utxo

PARAMETERS = TxParameters()
TTL_SLOT = 4_000_000
EDGES = [1, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**53, 2**63 - 1]


def signer_of(number: int) -> SoftwareSigner:
    """A valid extended key without recovery words."""
    key = bytearray(hashlib.sha512(b"signer %d" % number).digest())
    key[0] &= 0xF8
    key[31] = key[31] & 0x1F | 0x40
    return SoftwareSigner(bytes(key))


SIGNER = signer_of(0)


def own_address(network_id: int = 0) -> Address:
    stake = hashlib.blake2b(b"stake", digest_size=28).digest()
    return encode_address(bytes((network_id,)) + SIGNER.payment_key_hash + stake)


OWN = own_address()


def payee(number: int, *, base: bool = True, network_id: int = 0) -> Address:
    digest = hashlib.sha512(b"payee %d" % number).digest()
    if base:
        return encode_address(bytes((network_id,)) + digest[:56])
    return encode_address(bytes((0x60 | network_id,)) + digest[:28])


def asset(number: int) -> str:
    """One of many assets: 12 policies, names of 0 to 32 bytes."""
    policy = hashlib.blake2b(b"policy %d" % (number % 12), digest_size=28).hexdigest()
    name = hashlib.sha256(b"name %d" % number).digest()[: number // 12 % 33]
    return policy + name.hex()


ASSETS = [asset(number) for number in range(700)]


def pay(lovelace: int, *splits: int, name: str = LOVELACE) -> list[Output]:
    """Outputs of an invoice: pay_to and splits, each to another address."""
    first = Output("pay_to", payee(0), name, lovelace)
    return [first, *(Output("split", payee(n), name, units) for n, units in enumerate(splits, 1))]


def tx_id(rnd: random.Random) -> str:
    return rnd.randbytes(32).hex()


def random_index(rnd: random.Random) -> int:
    return rnd.choice([0, 1, 2, 23, 24, 255, 256, rnd.randrange(65_536)])


def random_lovelace(rnd: random.Random) -> int:
    kind = rnd.randrange(8)
    if kind == 0:
        return 969_750 + rnd.randrange(3)
    if kind == 1:
        return 2**32 + rnd.randrange(-200, 200)
    return int(10 ** rnd.uniform(6, 10.5))


def pure_utxo(rnd: random.Random, lovelace: int | None = None) -> Utxo:
    return Utxo(tx_id(rnd), random_index(rnd), random_lovelace(rnd) if lovelace is None else lovelace)


def mixed_utxo(rnd: random.Random, names: Iterable[str], room: dict[str, int]) -> Utxo:
    """A UTxO with assets and at least min-ADA; `room` limits what exists of each asset."""
    units = {}
    for name in names:
        left = room.get(name, 2**63 - 1)
        if left:
            units[name] = min(left, rnd.choice([rnd.choice(EDGES), rnd.randrange(1, 2**40)]))
            room[name] = left - units[name]
    least = min_lovelace(OWN.raw, units, PARAMETERS)
    lovelace = least if rnd.randrange(3) == 0 else max(least, random_lovelace(rnd))
    return Utxo(tx_id(rnd), random_index(rnd), lovelace, tuple(units.items()))


def random_wallet(rnd: random.Random, size: int) -> list[Utxo]:
    """UTxOs as a wallet may hold them; no asset has more than 2^63-1 units."""
    room: dict[str, int] = {}
    style = rnd.choice(["pure", "mixed", "mixed", "spread", "dust"])
    utxos = []
    for _ in range(size):
        if style == "dust":
            utxos.append(pure_utxo(rnd, 969_750 + rnd.randrange(60_000)))
        elif style == "spread":
            utxos.append(mixed_utxo(rnd, [rnd.choice(ASSETS[:3])], room))
        elif style == "mixed" and rnd.randrange(4) == 0:
            utxos.append(mixed_utxo(rnd, rnd.sample(ASSETS, rnd.choice([1, 1, 2, 20, 60])), room))
        else:
            utxos.append(pure_utxo(rnd))
    return utxos


def wallet_size(rnd: random.Random) -> int:
    return rnd.choice([1, 1, 2, 3, 5, 10, 30, 100, int(10 ** rnd.uniform(0, 3.3))])


def random_outputs(rnd: random.Random, utxos: list[Utxo]) -> list[Output]:
    """An invoice that this wallet may or may not be able to pay: ADA or one of its tokens, up to four splits."""
    held: dict[str, int] = {}
    for utxo in utxos:
        for name, units in utxo.assets:
            held[name] = held.get(name, 0) + units
    count = rnd.choice([1, 1, 2, 3, 5])
    payees = [payee(rnd.randrange(1000) * 5 + n, base=rnd.random() < 0.7) for n in range(count)]
    if held and rnd.random() < 0.5:
        name = rnd.choice(sorted(held))
        total = max(count, int(held[name] * rnd.choice([1, 0.5, 0.01, rnd.random()])))
        total = min(total, held[name]) if rnd.random() < 0.95 else min(held[name] + 1, 2**63 - 1)
        shares = split_units(rnd, max(total, count), count, 1)
        return [_output(n, to, name, units) for n, (to, units) in enumerate(zip(payees, shares, strict=True))]
    if rnd.randrange(6) == 0 and (edge := edge_payment(rnd, utxos)):
        return edge
    total = sum(utxo.lovelace for utxo in utxos)
    largest = max(utxo.lovelace for utxo in utxos)
    wanted = int(
        rnd.choice([total, largest, largest, min(total, 10_000_000)]) * rnd.choice([1, rnd.random(), 0.9])
    )
    wanted -= rnd.choice([0, 170_000, 200_000, rnd.randrange(1_500_000)])
    shares = split_units(rnd, max(wanted, count * 980_000), count, 980_000)
    return [_output(n, to, LOVELACE, units) for n, (to, units) in enumerate(zip(payees, shares, strict=True))]


def edge_payment(rnd: random.Random, utxos: list[Utxo]) -> list[Output] | None:
    """An amount one ADA-only UTxO pays exactly, or with change at a limit, or just misses."""
    utxo = rnd.choice(utxos)
    index_bytes = 1 if utxo.index < 24 else 2 if utxo.index < 256 else 3
    fee_bare = 155_381 + 44 * (10 + 3 + 1 + 35 + index_bytes + 1 + 60 + 5 + 5 + 107)
    least_change = rnd.choice([969_750, 2**32 - 1, 2**32 + 176])
    left = rnd.choice([0, 0, 44 * 65 + least_change + rnd.randrange(-200, 200), rnd.randrange(1, 1_000_000)])
    for width in (5, 9):
        units = utxo.lovelace - fee_bare - 44 * width - left
        if not utxo.assets and units >= 1_000_000 and (units < 2**32) == (width == 5):
            return [Output("pay_to", payee(0), LOVELACE, units)]
    return None


def _output(place: int, to: Address, name: str, units: int) -> Output:
    return Output("split" if place else "pay_to", to, name, units)


def split_units(rnd: random.Random, total: int, count: int, least: int) -> list[int]:
    """`count` shares, each at least `least`, that sum to `total`."""
    free = total - count * least
    cuts = sorted(rnd.randint(0, free) for _ in range(count - 1))
    return [least + high - low for low, high in zip([0, *cuts], [*cuts, free], strict=True)]
