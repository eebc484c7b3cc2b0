"""A plan: which coins a transaction spends, what it pays, what comes back as change, and the bytes of its body.

Sizes are known before a byte is laid, so the fee is a closed form and there is no loop until it fits: only the
width of the last change coin depends on the fee, and `_last_change` solves that.
May import: core, `cbor`, `coins`. Never: chooses coins, signs, or leaves money to the fee that could be kept.
Sources: Conway CDDL; cardano-ledger's Babbage rule for the minimum (160 + size) x coinsPerUTxOByte.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from payagent.core.address import Address
from payagent.core.invoice import Output, Role
from payagent.core.money import LOVELACE, MAX_UNITS
from payagent.core.problems import Refused
from payagent.wallet import cbor_write as cbor
from payagent.wallet.utxo_index import Utxo

Assets = tuple[tuple[str, int], ...]

FEE_SLACK_BYTES = 4  # a change coin of 2^32 lovelace or more takes four bytes more than one below
_OUTPUT_OVERHEAD_BYTES = 160
_WITNESSES = b"\xa1\x00" + cbor.TAGGED_SET + b"\x81\x82\x58\x20"
_SIGNATURE = b"\x58\x40"
_TRUE, _NULL = b"\xf5", b"\xf6"
_AUXILIARY_HASH_SIZE = 1 + 2 + 32
_WITNESS_SIZE = len(_WITNESSES) + 32 + len(_SIGNATURE) + 64
_FEE_WIDTH = 5  # every fee from 65,536 lovelace to 4,294 ADA


@dataclass(frozen=True, slots=True)
class TxParameters:
    """The protocol parameters that a payment meets; the defaults are mainnet's, and what a lie is measured by."""

    min_fee_a: int = 44
    min_fee_b: int = 155_381
    coins_per_utxo_byte: int = 4_310
    max_tx_size: int = 16_384
    max_value_size: int = 5_000


class PlannedOutput(NamedTuple):
    """One output of the transaction: `address` raw, `assets` in canonical order, without lovelace."""

    role: Role
    address: bytes
    lovelace: int
    assets: Assets = ()


class Frame(NamedTuple):
    """What holds for a transaction whatever coins it spends.

    `rest` gets what is left over, in outputs of the role `rest_role`: change, unless a sweep pays it out.
    `commitment` is 32 bytes that the transaction commits to in its metadata.
    """

    rest: Address
    ttl_slot: int
    network_id: int
    parameters: TxParameters
    fee_cap_lovelace: int
    rest_role: Role = "change"
    commitment: bytes | None = None

    @property
    def auxiliary(self) -> bytes:
        """The auxiliary data: null, or the commitment under its metadata label."""
        return _NULL if self.commitment is None else cbor.commitment(self.commitment)


class TxPlan(NamedTuple):
    """One transaction, complete but for the signature. The same inputs and outputs give the same bytes.

    `asked` is what was to be paid, as it came in; `outputs` are those of the transaction, in order: one for
    each of `asked`, then the rest. `size` is that of the signed bytes.
    """

    nonce_utxo: Utxo
    inputs: tuple[Utxo, ...]
    asked: tuple[Output, ...]
    outputs: tuple[PlannedOutput, ...]
    fee_lovelace: int
    frame: Frame
    body: bytes
    tx_id: str
    size: int

    @property
    def ttl_slot(self) -> int:
        return self.frame.ttl_slot

    @property
    def network_id(self) -> int:
        return self.frame.network_id

    @property
    def change(self) -> tuple[PlannedOutput, ...]:
        """The outputs that pay the wallet itself."""
        return tuple(output for output in self.outputs if output.role == "change")

    @property
    def paid(self) -> int:
        """How many outputs, from the first on, need not pay the wallet itself: all behind them must."""
        for count in range(len(self.outputs), 0, -1):
            if self.outputs[count - 1].role != "change":
                return count
        return 0

    @property
    def spend(self) -> Mapping[str, int]:
        """Units per asset that leave the wallet, with the fee and the ADA that rides along with tokens."""
        leaving = {LOVELACE: self.fee_lovelace}
        for output in self.outputs:
            if output.role != "change":
                leaving[LOVELACE] += output.lovelace
                for asset, units in output.assets:
                    leaving[asset] = leaving.get(asset, 0) + units
        return leaving


def output_minimum(address: bytes, assets: bytes, parameters: TxParameters) -> int:
    """Least lovelace of an output with this encoded multiasset map (empty for none), in the form we send."""
    return _minimum(_base_size(address), assets, parameters)


def _minimum(base_size: int, assets: bytes, parameters: TxParameters) -> int:
    return (_OUTPUT_OVERHEAD_BYTES + base_size + _value_size(assets)) * parameters.coins_per_utxo_byte


def _base_size(address: bytes) -> int:
    """Bytes of an output before its value."""
    return 1 + cbor.head_size(len(address)) + len(address)


def _value_size(assets: bytes) -> int:
    """Bytes of a value with this encoded multiasset map (empty for none) and a coin of five bytes."""
    return 6 + len(assets) if assets else 5


def min_lovelace(raw_address: bytes, asset_units: Mapping[str, int], parameters: TxParameters) -> int:
    """Least lovelace that the ledger accepts in an output with these assets (hex names, units above 0).

    Measured with a coin of five bytes, which every minimum has: Babbage's rule counts the bytes as sent, and
    ours are the shorter array form, so base addresses need 969,750 for pure ADA and not 978,370.
    """
    assets = cbor.multiasset(asset_units.items()) if asset_units else b""  # in any order: only its size counts
    return output_minimum(raw_address, assets, parameters)


class TxRequest(NamedTuple):
    """What is asked, laid out once: the planned outputs, their bytes, and what they need per asset.

    `assets` are those that must be paid besides lovelace; `fixed_size` are the bytes of the signed transaction
    that no choice of coins changes, `rest_base_size` those of an output of the rest before its value.
    """

    asked: tuple[Output, ...]
    planned: tuple[PlannedOutput, ...]
    encoded: bytes
    needs: Mapping[str, int]
    assets: tuple[str, ...]
    frame: Frame
    fixed_size: int
    rest_base_size: int

    def size(self, input_count: int, input_bytes: int, rest_count: int, rest_bytes: int) -> int:
        """Bytes of the signed transaction."""
        heads = cbor.head_size(input_count) + cbor.head_size(len(self.planned) + rest_count)
        return self.fixed_size + heads + input_bytes + rest_bytes

    def fee(self, size: int) -> int:
        """The least fee of a signed transaction of so many bytes."""
        parameters = self.frame.parameters
        return parameters.min_fee_b + parameters.min_fee_a * size


def _fixed_size(encoded: bytes, frame: Frame) -> int:
    """Array, map, five keys, what is asked, fee, TTL, witness, true and null or a commitment with its hash."""
    commitment = 0 if frame.commitment is None else _AUXILIARY_HASH_SIZE + len(frame.auxiliary) - len(_NULL)
    return (
        10 + len(cbor.TAGGED_SET) + len(encoded)
        + _FEE_WIDTH + cbor.head_size(frame.ttl_slot) + _WITNESS_SIZE + commitment
    )  # fmt: skip


def lay_order(asked: Sequence[Output], frame: Frame) -> TxRequest:
    """Lay out what is asked. A token output carries its minimum of ADA; an ADA output must hold its own.

    Refused: `output_below_minimum`, `amount_out_of_range`.
    """
    planned, parts = [], []
    needs = {LOVELACE: 0}
    for output in asked:
        if not 0 < output.units <= MAX_UNITS:
            raise Refused("amount_out_of_range", f"an output of {output.units} units cannot be")
        address = output.address.raw
        assets: Assets = () if output.asset == LOVELACE else ((output.asset, output.units),)
        encoded = cbor.single_asset(output.asset, output.units) if assets else b""
        least = output_minimum(address, encoded, frame.parameters)
        lovelace = least if assets else output.units
        if lovelace < least:
            raise Refused(
                "output_below_minimum",
                f"{output.units} lovelace to {output.address}, where the ledger wants {least}",
                minimum=str(least),
            )
        planned.append(PlannedOutput(output.role, address, lovelace, assets))
        parts.append(cbor.output(address, lovelace, encoded))
        needs[LOVELACE] += lovelace
        if assets:
            needs[output.asset] = needs.get(output.asset, 0) + output.units
    encoded = b"".join(parts)
    assets_asked = tuple(asset for asset in needs if asset != LOVELACE)
    sizes = _fixed_size(encoded, frame), _base_size(frame.rest.raw)
    return TxRequest(tuple(asked), tuple(planned), encoded, needs, assets_asked, frame, *sizes)


class Bundle(NamedTuple):
    """What one output of the rest holds besides lovelace, with the least lovelace that it takes."""

    assets: Assets
    encoded: bytes
    least_lovelace: int


class Rest(NamedTuple):
    """The outputs that what is left over takes: their bytes, the last coin in five, and the least they hold."""

    bundles: tuple[Bundle, ...]
    size: int
    least_lovelace: int


def _spread(left: Mapping[str, int], order: TxRequest) -> Rest:
    """What is left over, in as few outputs as values allow (maxValueSize; 2^63-1 units of an asset)."""
    waiting = sorted(
        ((asset, units) for asset, units in left.items() if units), key=lambda pair: cbor.canonical_key(pair[0])
    )
    bundles: list[Bundle] = []
    size = least_lovelace = 0
    while waiting or not bundles:
        taken, waiting = _fill_value(waiting, order.frame.parameters.max_value_size)
        encoded = cbor.multiasset(taken) if taken else b""
        least = _minimum(order.rest_base_size, encoded, order.frame.parameters)
        bundles.append(Bundle(tuple(taken), encoded, least))
        size += order.rest_base_size + _value_size(encoded)
        least_lovelace += least
    return Rest(tuple(bundles), size, least_lovelace)


def _fill_value(
    waiting: Sequence[tuple[str, int]], size_max: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The assets, in order, that one value holds, and those that must wait for the next."""
    taken: list[tuple[str, int]] = []
    over: list[tuple[str, int]] = []
    size, policy = 1 + 9 + 3, ""  # array, coin and map heads at their widest
    for place, (asset, units) in enumerate(waiting):
        name_bytes = (len(asset) - 56) // 2
        size += cbor.head_size(name_bytes) + name_bytes + cbor.head_size(min(units, MAX_UNITS))
        size += 30 + 3 if asset[:56] != policy else 0
        policy = asset[:56]
        if size > size_max and taken:
            return taken, over + list(waiting[place:])
        taken.append((asset, min(units, MAX_UNITS)))
        if units > MAX_UNITS:
            over.append((asset, units - MAX_UNITS))
    return taken, over


class Draft:
    """Coins chosen so far for an order, and whether they pay for it; adding a coin costs what it brings.

    What the coins so far come to is kept until the next one, as a selection asks for it again and again.
    """

    __slots__ = ("_bare", "_input_bytes", "_kept", "_rest", "held", "order", "refs", "utxos")

    def __init__(self, order: TxRequest, utxos: Iterable[Utxo] = ()) -> None:
        self.order = order
        self.utxos: list[Utxo] = []
        self.refs: set[str] = set()
        self.held: dict[str, int] = {LOVELACE: 0}
        self._input_bytes = 0
        self._rest: Rest | None = None
        self._bare: int | None = None
        self._kept: int | None = None
        for utxo in utxos:
            self.add(utxo)

    def add(self, utxo: Utxo) -> None:
        """Spend one more coin."""
        self.utxos.append(utxo)
        self.refs.add(utxo.ref)
        self._input_bytes += 35 + cbor.head_size(utxo.index)
        self._bare = self._kept = None
        self.held[LOVELACE] += utxo.lovelace
        for asset, units in utxo.assets:
            self.held[asset] = self.held.get(asset, 0) + units
            self._rest = None

    def lacking(self, asset: str) -> int:
        """Units of an asset (not lovelace) that are still missing."""
        return max(0, self.order.needs.get(asset, 0) - self.held.get(asset, 0))

    def lacks_assets(self) -> bool:
        """Whether an asset that must be paid is still missing."""
        assets = self.order.assets
        return bool(assets) and any(self.lacking(asset) for asset in assets)

    def rest(self) -> Rest:
        """What is left over. Only for a draft that lacks no asset."""
        if self._rest is None:
            needs = self.order.needs
            left = {asset: units - needs.get(asset, 0) for asset, units in self.held.items() if asset != LOVELACE}
            self._rest = _spread(left, self.order)
        return self._rest

    def bare_size(self, more_inputs: int = 0) -> int:
        """Bytes of the transaction when nothing is left over, with so many more inputs of index below 24."""
        if more_inputs:
            return self._size(more_inputs, 0, 0)
        if self._bare is None:
            self._bare = self._size(0, 0, 0)
        return self._bare

    def kept_size(self, more_inputs: int = 0) -> int:
        """Bytes of the transaction with the rest, whose last coin takes five bytes."""
        if not more_inputs and self._kept is not None:
            return self._kept
        rest = self.rest()
        size = self._size(more_inputs, len(rest.bundles), rest.size)
        if not more_inputs:
            self._kept = size
        return size

    def _size(self, more_inputs: int, rest_count: int, rest_bytes: int) -> int:
        input_bytes = self._input_bytes + 36 * more_inputs
        return self.order.size(len(self.utxos) + more_inputs, input_bytes, rest_count, rest_bytes)

    def fee(self, size: int) -> int:
        return self.order.fee(size)

    def leaves_assets(self) -> bool:
        """Whether assets are left over, so that a rest there must be. Only for a draft that lacks no asset."""
        return bool(self.rest().bundles[0].assets)

    def is_exact(self) -> bool:
        """Whether inputs, outputs and fee balance to the unit, so that there is no rest."""
        return self.exact_gap() == 0

    def may_be_exact(self) -> bool:
        """Whether there may be no rest at all. Only for a draft that lacks no asset."""
        return bool(self.order.planned) and not self.leaves_assets()

    def exact_gap(self) -> int | None:
        """Lovelace missing until there is no rest at all; None when there must be one."""
        return self.gap() if self.may_be_exact() else None

    def gap(self, more_inputs: int = 0) -> int:
        """Lovelace missing for the outputs and the fee of a transaction without rest; below it nothing pays."""
        return self.order.needs[LOVELACE] + self.fee(self.bare_size(more_inputs)) - self.held[LOVELACE]

    def shortfall(self, more_inputs: int = 0) -> int:
        """Lovelace missing until the rest, after the fee, is no dust; zero or less when it can be kept."""
        fee = self.fee(self.kept_size(more_inputs))
        return self.order.needs[LOVELACE] + fee + self.rest().least_lovelace - self.held[LOVELACE]

    def pays(self) -> bool:
        """Whether the coins so far make a transaction, in balance and in size."""
        if not self.utxos or (gap := self.gap()) > 0 or self.lacks_assets():
            return False
        size_max = self.order.frame.parameters.max_tx_size
        if gap == 0 and self.is_exact():
            return self.bare_size() <= size_max
        return self.kept_size() <= size_max and self.shortfall() <= 0

    def has_room(self) -> bool:
        """Whether the coins so far leave any hope that more coins still fit.

        What is left of assets is not looked at while lovelace is short: that would cost more than it saves.
        """
        bare = self.gap() > 0 or self.lacks_assets() or not self.leaves_assets()
        size = self.bare_size() if bare else self.kept_size()
        return size <= self.order.frame.parameters.max_tx_size


def finish(draft: Draft, nonce_utxo: Utxo) -> TxPlan:
    """Lay the body of a draft that pays. Refused: `fee_too_high`, `transaction_too_big`."""
    order, frame = draft.order, draft.order.frame
    utxos = tuple(sorted(draft.utxos, key=lambda utxo: (utxo.tx_id, utxo.index)))
    rest, encoded, fee_lovelace = _rest(draft)
    if fee_lovelace > frame.fee_cap_lovelace:
        raise Refused("fee_too_high", f"a fee of {fee_lovelace} lovelace, the cap is {frame.fee_cap_lovelace}")
    body = b"".join((
        cbor.head(5, 5 if frame.commitment is None else 6), b"\x00", cbor.TAGGED_SET, cbor.head(4, len(utxos)),
        *(cbor.tx_input(utxo.tx_id, utxo.index) for utxo in utxos),
        b"\x01", cbor.head(4, len(order.planned) + len(rest)), order.encoded, encoded,
        b"\x02", cbor.uint(fee_lovelace), b"\x03", cbor.uint(frame.ttl_slot), _auxiliary_hash(frame),
        b"\x0f", cbor.uint(frame.network_id),
    ))  # fmt: skip
    size = 1 + len(body) + _WITNESS_SIZE + len(_TRUE) + len(frame.auxiliary)
    if size > frame.parameters.max_tx_size:
        raise Refused("transaction_too_big", f"{size} bytes, {frame.parameters.max_tx_size} are the bound")
    return TxPlan(
        nonce_utxo=nonce_utxo,
        inputs=utxos,
        asked=order.asked,
        outputs=order.planned + rest,
        fee_lovelace=fee_lovelace,
        frame=frame,
        body=body,
        tx_id=hashlib.blake2b(body, digest_size=32).hexdigest(),
        size=size,
    )


def _auxiliary_hash(frame: Frame) -> bytes:
    if frame.commitment is None:
        return b""
    return b"\x07" + cbor.byte_string(hashlib.blake2b(frame.auxiliary, digest_size=32).digest())


def _rest(draft: Draft) -> tuple[tuple[PlannedOutput, ...], bytes, int]:
    """The outputs of the rest, their bytes, and the fee."""
    if draft.is_exact():
        return (), b"", draft.fee(draft.bare_size())
    frame, spread = draft.order.frame, draft.rest().bundles
    above, fee_lovelace = -draft.shortfall(), draft.fee(draft.kept_size())
    last, extra = _last_change(spread[-1].least_lovelace + above, frame.parameters.min_fee_a)
    planned, parts = [], []
    for place, bundle in enumerate(spread, 1):
        lovelace = last if place == len(spread) else bundle.least_lovelace
        planned.append(PlannedOutput(frame.rest_role, frame.rest.raw, lovelace, bundle.assets))
        parts.append(cbor.output(frame.rest.raw, lovelace, bundle.encoded))
    return tuple(planned), b"".join(parts), fee_lovelace + extra


def _last_change(lovelace: int, min_fee_a: int) -> tuple[int, int]:
    """The last change coin and the fee that its width adds, from its value when it took five bytes.

    Where neither width is consistent (four more bytes cost what lifted it over 2^32) the largest coin of five
    bytes is kept, and the fee takes the difference: at most 176 lovelace.
    """
    wide = FEE_SLACK_BYTES * min_fee_a
    if lovelace <= cbor.WIDTH_4_MAX:
        return lovelace, 0
    if lovelace - wide > cbor.WIDTH_4_MAX:
        return lovelace - wide, wide
    return cbor.WIDTH_4_MAX, lovelace - cbor.WIDTH_4_MAX


def assemble(plan: TxPlan, public_key: bytes, signature: bytes) -> bytes:
    """The signed transaction: [body, {0: set of one [key, signature]}, true, auxiliary data]."""
    return b"".join(
        (b"\x84", plan.body, _WITNESSES, public_key, _SIGNATURE, signature, _TRUE, plan.frame.auxiliary)
    )
