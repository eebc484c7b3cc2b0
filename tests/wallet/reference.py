"""A reference for feasibility: does a payment fit one transaction that takes the largest UTxOs first?

It shares no code with payagent.wallet: every size comes from bytes that cbor2 wrote.
"""

from collections.abc import Sequence
from typing import Any

import cbor2

from payagent.core.invoice import Output
from payagent.wallet.utxo_index import Utxo

A, B, PER_BYTE, SIZE_MAX, VALUE_MAX = 44, 155_381, 4_310, 16_384, 5_000


def _value(lovelace: int, units: dict[str, int]) -> Any:
    policies: dict[bytes, dict[bytes, int]] = {}
    for name, count in units.items():
        policies.setdefault(bytes.fromhex(name[:56]), {})[bytes.fromhex(name[56:])] = count
    return [lovelace, policies] if policies else lovelace


def _least(address: bytes, units: dict[str, int]) -> int:
    return (160 + len(cbor2.dumps([address, _value(2**32 - 1, units)]))) * PER_BYTE


def _values(units: dict[str, int]) -> list[dict[str, int]]:
    """Assets in values of at most 5000 bytes, each as full as possible."""
    if len(cbor2.dumps(_value(2**64 - 1, units))) <= VALUE_MAX:
        return [units]
    values: list[dict[str, int]] = [{}]
    for name in sorted(units):
        if len(cbor2.dumps(_value(2**64 - 1, {**values[-1], name: units[name]}))) > VALUE_MAX:
            values.append({})
        values[-1][name] = units[name]
    return values


def _size(utxos: Sequence[Utxo], outputs: list[Any], ttl: int) -> int:
    inputs = [[bytes.fromhex(utxo.tx_id), utxo.index] for utxo in utxos]
    body = {0: cbor2.CBORTag(258, inputs), 1: outputs, 2: 200_000, 3: ttl}
    witness = {0: cbor2.CBORTag(258, [[bytes(32), bytes(64)]])}
    return len(cbor2.dumps([body, witness, True, None]))


def fits(utxos: Sequence[Utxo], asked: Sequence[Output], own: bytes, ttl: int, size_max: int = SIZE_MAX) -> bool:
    """Whether exactly these UTxOs pay, with change or with nothing left over."""
    left: dict[str, int] = {}
    lovelace = sum(utxo.lovelace for utxo in utxos)
    for utxo in utxos:
        for name, units in utxo.assets:
            left[name] = left.get(name, 0) + units
    paid = []
    for output in asked:
        tokens = {} if output.asset == "lovelace" else {output.asset: output.units}
        riding = _least(output.address.raw, tokens) if tokens else output.units
        lovelace -= riding
        if tokens:
            left[output.asset] = left.get(output.asset, 0) - output.units
        paid.append([output.address.raw, _value(riding, tokens)])
    if lovelace < 0 or any(units < 0 for units in left.values()):
        return False
    left = {name: units for name, units in left.items() if units}
    if not left:
        size = _size(utxos, paid, ttl)
        if lovelace == B + A * size and size <= size_max:
            return True
    spread = _values(left)
    mins = [_least(own, units) for units in spread]
    change = [[own, _value(2**32 - 1, units)] for units in spread]
    size = _size(utxos, paid + change, ttl)
    rest = lovelace - (B + A * size) - sum(mins[:-1])
    wide = rest > 2**32 + 175
    return rest >= mins[-1] and size + 4 * wide <= size_max


def largest_first(utxos: Sequence[Utxo], asked: Sequence[Output]) -> list[list[Utxo]]:
    """Two orders of the UTxOs: those with most of the asset first, as far as needed, or all by lovelace."""
    name, need = asked[0].asset, sum(output.units for output in asked)
    by_lovelace = sorted(utxos, key=lambda utxo: -utxo.lovelace)
    if name == "lovelace":
        return [by_lovelace]
    first, held = [], 0
    for utxo in sorted(utxos, key=lambda utxo: -dict(utxo.assets).get(name, 0)):
        if held >= need:
            break
        first.append(utxo)
        held += dict(utxo.assets).get(name, 0)
    refs = {utxo.ref for utxo in first}
    return [first + [utxo for utxo in by_lovelace if utxo.ref not in refs], by_lovelace]


def largest_first_fits(utxos: Sequence[Utxo], asked: Sequence[Output], own: bytes, ttl: int) -> bool:
    """Whether some number of the largest UTxOs pays in one transaction."""
    for line in largest_first(utxos, asked):
        for count in _worth_trying(line, asked):
            if fits(line[:count], asked, own, ttl):
                return True
    return False


def _worth_trying(line: Sequence[Utxo], asked: Sequence[Output]) -> list[int]:
    """Counts of UTxOs that hold enough, up to what 16,384 bytes hold. The first 25 suffice: with that many more
    UTxOs the change is not dust, or the size is already the limit."""
    name, need = asked[0].asset, sum(output.units for output in asked)
    held = lovelace = 0
    counts: list[int] = []
    for count, utxo in enumerate(line[:450], 1):
        lovelace += utxo.lovelace
        held += dict(utxo.assets).get(name, 0)
        if (lovelace if name == "lovelace" else held) >= need:
            counts.append(count)
        if len(counts) == 25:
            break
    return counts
