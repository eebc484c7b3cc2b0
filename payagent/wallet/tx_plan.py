"""Plans a transaction: its inputs, outputs, change and fee, and the bytes of its body.

Start with `lay_order`, `Draft` and `finish`. All sizes are known before the bytes are written, so the fee is
computed directly, without a loop. Only the encoded width of the last change amount depends on the fee;
`_last_change` solves that.

Sources: Conway CDDL; cardano-ledger's Babbage rule for min-ADA, (160 + size) x coinsPerUTxOByte.

Never: chooses UTxOs; signs; leaves lovelace to the fee that could be change.
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

FEE_SLACK_BYTES = 4  # a change amount of 2^32 lovelace or more takes four bytes more than one below
_OUTPUT_OVERHEAD_BYTES = 160
_WITNESSES = b"\xa1\x00" + cbor.TAGGED_SET + b"\x81\x82\x58\x20"
_SIGNATURE = b"\x58\x40"
_TRUE, _NULL = b"\xf5", b"\xf6"
_AUXILIARY_HASH_SIZE = 1 + 2 + 32
_WITNESS_SIZE = len(_WITNESSES) + 32 + len(_SIGNATURE) + 64
_FEE_WIDTH = 5  # bytes of every fee from 65,536 lovelace to 4,294 ADA


@dataclass(frozen=True, slots=True)
class TxParameters:
    """The protocol parameters that a transaction must meet. The defaults are mainnet's."""

    min_fee_a: int = 44
    min_fee_b: int = 155_381
    coins_per_utxo_byte: int = 4_310
    max_tx_size: int = 16_384
    max_value_size: int = 5_000


class PlannedOutput(NamedTuple):
    """One output of the transaction: raw `address`, and `assets` besides lovelace in canonical order."""

    role: Role
    address: bytes
    lovelace: int
    assets: Assets = ()


class Frame(NamedTuple):
    """The properties of a transaction that do not depend on its inputs.

    `rest` receives what is left over, in outputs of the role `rest_role`: change, except when everything is sent
    to another address. `commitment`: 32 bytes that the transaction commits to in its metadata.
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
    """One transaction without its signature. The same inputs and outputs give the same bytes.

    `asked`: the requested outputs. `outputs`: the outputs of the transaction in order, one for each of `asked`,
    then the rest. `size`: the length of the signed bytes.
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
        """How many of the first outputs may leave the wallet. All later outputs must pay the wallet itself."""
        for count in range(len(self.outputs), 0, -1):
            if self.outputs[count - 1].role != "change":
                return count
        return 0

    @property
    def spend(self) -> Mapping[str, int]:
        """Units per asset that leave the wallet, including the fee and the min-ADA of token outputs."""
        leaving = {LOVELACE: self.fee_lovelace}
        for output in self.outputs:
            if output.role != "change":
                leaving[LOVELACE] += output.lovelace
                for asset, units in output.assets:
                    leaving[asset] = leaving.get(asset, 0) + units
        return leaving


def output_minimum(address: bytes, assets: bytes, parameters: TxParameters) -> int:
    """Return the min-ADA of an output in lovelace. `assets` is an encoded multiasset map, or empty."""
    return _minimum(_base_size(address), assets, parameters)


def _minimum(base_size: int, assets: bytes, parameters: TxParameters) -> int:
    return (_OUTPUT_OVERHEAD_BYTES + base_size + _value_size(assets)) * parameters.coins_per_utxo_byte


def _base_size(address: bytes) -> int:
    """Return the bytes of an output before its value."""
    return 1 + cbor.head_size(len(address)) + len(address)


def _value_size(assets: bytes) -> int:
    """Return the bytes of a value with this encoded multiasset map, or empty, and five bytes of lovelace."""
    return 6 + len(assets) if assets else 5


def min_lovelace(raw_address: bytes, asset_units: Mapping[str, int], parameters: TxParameters) -> int:
    """Return the min-ADA in lovelace of an output with these assets (hex names, units above 0).

    Every minimum takes five bytes. Babbage's rule counts the bytes as sent, and we send the shorter array form. So
    an output of pure ADA to a base address needs 969,750 lovelace instead of 978,370.
    """
    assets = cbor.multiasset(asset_units.items()) if asset_units else b""  # in any order: only its size counts
    return output_minimum(raw_address, assets, parameters)


class TxRequest(NamedTuple):
    """The requested outputs: planned, encoded, and with the units needed per asset.

    `assets`: the assets to pay besides lovelace.
    `fixed_size`: bytes of the signed transaction that do not depend on its inputs and rest.
    `rest_base_size`: bytes of a rest output before its value.
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
        """Return the bytes of the signed transaction."""
        heads = cbor.head_size(input_count) + cbor.head_size(len(self.planned) + rest_count)
        return self.fixed_size + heads + input_bytes + rest_bytes

    def fee(self, size: int) -> int:
        """Return the minimum fee in lovelace of a signed transaction of `size` bytes."""
        parameters = self.frame.parameters
        return parameters.min_fee_b + parameters.min_fee_a * size


def _fixed_size(encoded: bytes, frame: Frame) -> int:
    """Sum up array, map, four keys, requested outputs, fee, TTL, witness, true, and null or the commitment."""
    commitment = 0 if frame.commitment is None else _AUXILIARY_HASH_SIZE + len(frame.auxiliary) - len(_NULL)
    return (
        8 + len(cbor.TAGGED_SET) + len(encoded)
        + _FEE_WIDTH + cbor.head_size(frame.ttl_slot) + _WITNESS_SIZE + commitment
    )  # fmt: skip


def lay_order(asked: Sequence[Output], frame: Frame) -> TxRequest:
    """Plan and encode the requested outputs. A token output gets its min-ADA; an ADA output must reach it.

    Refused: `invoice_invalid/below_min_ada`, `invoice_invalid/amount_range`.
    """
    planned, parts = [], []
    needs = {LOVELACE: 0}
    for output in asked:
        if not 0 < output.units <= MAX_UNITS:
            raise Refused("invoice_invalid/amount_range", f"{output.units} units are outside an output's range")
        address = output.address.raw
        assets: Assets = () if output.asset == LOVELACE else ((output.asset, output.units),)
        encoded = cbor.single_asset(output.asset, output.units) if assets else b""
        least = output_minimum(address, encoded, frame.parameters)
        lovelace = least if assets else output.units
        if lovelace < least:
            raise Refused(
                "invoice_invalid/below_min_ada",
                f"{output.units} lovelace to {output.address}, the minimum is {least}",
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
    """The assets of one rest output besides lovelace, with its min-ADA."""

    assets: Assets
    encoded: bytes
    least_lovelace: int


class Rest(NamedTuple):
    """The rest outputs: their assets, size (with five bytes for the last lovelace amount) and min-ADA."""

    bundles: tuple[Bundle, ...]
    size: int
    least_lovelace: int


def _spread(left: Mapping[str, int], order: TxRequest) -> Rest:
    """Spread what is left over on as few outputs as possible (maxValueSize; 2^63-1 units of an asset)."""
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
    """Return the assets, in order, that fit one value, and the remaining ones."""
    taken: list[tuple[str, int]] = []
    over: list[tuple[str, int]] = []
    size, policy = 1 + 9 + 3, ""  # array, lovelace and map heads at their widest
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
    """The UTxOs chosen so far for a request, and whether they pay for it.

    Sizes and rest are cached until the next `add`, because coin selection asks for them repeatedly.
    """

    __slots__ = ("_bare", "_input_bytes", "_rest", "_with_rest", "held", "order", "refs", "utxos")

    def __init__(self, order: TxRequest, utxos: Iterable[Utxo] = ()) -> None:
        self.order = order
        self.utxos: list[Utxo] = []
        self.refs: set[str] = set()
        self.held: dict[str, int] = {LOVELACE: 0}
        self._input_bytes = 0
        self._rest: Rest | None = None
        self._bare: int | None = None
        self._with_rest: int | None = None
        for utxo in utxos:
            self.add(utxo)

    def add(self, utxo: Utxo) -> None:
        """Add one more UTxO to the inputs."""
        self.utxos.append(utxo)
        self.refs.add(utxo.ref)
        self._input_bytes += 35 + cbor.head_size(utxo.index)
        self._bare = self._with_rest = None
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
        """Return the rest outputs. Only for a draft that lacks no asset."""
        if self._rest is None:
            needs = self.order.needs
            left = {asset: units - needs.get(asset, 0) for asset, units in self.held.items() if asset != LOVELACE}
            self._rest = _spread(left, self.order)
        return self._rest

    def bare_size(self, more_inputs: int = 0) -> int:
        """Bytes of the transaction without a rest, with `more_inputs` added whose index is below 24."""
        if more_inputs:
            return self._size(more_inputs, 0, 0)
        if self._bare is None:
            self._bare = self._size(0, 0, 0)
        return self._bare

    def size_with_rest(self, more_inputs: int = 0) -> int:
        """Bytes of the transaction with the rest, whose last lovelace amount takes five bytes."""
        if not more_inputs and self._with_rest is not None:
            return self._with_rest
        rest = self.rest()
        size = self._size(more_inputs, len(rest.bundles), rest.size)
        if not more_inputs:
            self._with_rest = size
        return size

    def _size(self, more_inputs: int, rest_count: int, rest_bytes: int) -> int:
        input_bytes = self._input_bytes + 36 * more_inputs
        return self.order.size(len(self.utxos) + more_inputs, input_bytes, rest_count, rest_bytes)

    def leaves_assets(self) -> bool:
        """Whether assets are left over, which requires a rest. Only for a draft that lacks no asset."""
        return bool(self.rest().bundles[0].assets)

    def is_exact(self) -> bool:
        """Whether inputs, outputs and fee balance exactly, without a rest."""
        return self.exact_gap() == 0

    def may_be_exact(self) -> bool:
        """Whether the transaction may have no rest. Only for a draft that lacks no asset."""
        return bool(self.order.planned) and not self.leaves_assets()

    def exact_gap(self) -> int | None:
        """Lovelace missing to balance without a rest; None if there must be one."""
        return self.gap() if self.may_be_exact() else None

    def gap(self, more_inputs: int = 0) -> int:
        """Lovelace missing for the outputs and the fee without a rest. Above 0, the draft cannot pay."""
        return self.order.needs[LOVELACE] + self.order.fee(self.bare_size(more_inputs)) - self.held[LOVELACE]

    def shortfall(self, more_inputs: int = 0) -> int:
        """Lovelace missing until the rest, after the fee, reaches its min-ADA. 0 or less if it does."""
        fee = self.order.fee(self.size_with_rest(more_inputs))
        return self.order.needs[LOVELACE] + fee + self.rest().least_lovelace - self.held[LOVELACE]

    def pays(self) -> bool:
        """Whether the UTxOs so far make a transaction that balances and fits."""
        if not self.utxos or (gap := self.gap()) > 0 or self.lacks_assets():
            return False
        size_max = self.order.frame.parameters.max_tx_size
        if gap == 0 and self.is_exact():
            return self.bare_size() <= size_max
        return self.size_with_rest() <= size_max and self.shortfall() <= 0

    def has_room(self) -> bool:
        """Whether more UTxOs may still fit.

        While lovelace is short, left-over assets are ignored: computing the rest would cost more than it saves.
        """
        bare = self.gap() > 0 or self.lacks_assets() or not self.leaves_assets()
        size = self.bare_size() if bare else self.size_with_rest()
        return size <= self.order.frame.parameters.max_tx_size


def finish(draft: Draft, nonce_utxo: Utxo) -> TxPlan:
    """Build the body of a draft that pays. Refused: `fee_too_high`, `utxos_too_small/transaction_size`."""
    order, frame = draft.order, draft.order.frame
    utxos = tuple(sorted(draft.utxos, key=lambda utxo: (utxo.tx_id, utxo.index)))
    rest, encoded, fee_lovelace = _rest(draft)
    if fee_lovelace > frame.fee_cap_lovelace:
        raise Refused("fee_too_high", f"a fee of {fee_lovelace} lovelace, the cap is {frame.fee_cap_lovelace}")
    body = b"".join((
        cbor.head(5, 4 if frame.commitment is None else 5), b"\x00", cbor.TAGGED_SET, cbor.head(4, len(utxos)),
        *(cbor.tx_input(utxo.tx_id, utxo.index) for utxo in utxos),
        b"\x01", cbor.head(4, len(order.planned) + len(rest)), order.encoded, encoded,
        b"\x02", cbor.uint(fee_lovelace), b"\x03", cbor.uint(frame.ttl_slot), _auxiliary_hash(frame),
    ))  # fmt: skip
    size = 1 + len(body) + _WITNESS_SIZE + len(_TRUE) + len(frame.auxiliary)
    if size > frame.parameters.max_tx_size:
        raise Refused(
            "utxos_too_small/transaction_size", f"{size} bytes, the maximum is {frame.parameters.max_tx_size}"
        )
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
    """Return the rest outputs, their bytes, and the fee."""
    if draft.is_exact():
        return (), b"", draft.order.fee(draft.bare_size())
    frame, spread = draft.order.frame, draft.rest().bundles
    above, fee_lovelace = -draft.shortfall(), draft.order.fee(draft.size_with_rest())
    last, extra = _last_change(spread[-1].least_lovelace + above, frame.parameters.min_fee_a)
    planned, parts = [], []
    for place, bundle in enumerate(spread, 1):
        lovelace = last if place == len(spread) else bundle.least_lovelace
        planned.append(PlannedOutput(frame.rest_role, frame.rest.raw, lovelace, bundle.assets))
        parts.append(cbor.output(frame.rest.raw, lovelace, bundle.encoded))
    return tuple(planned), b"".join(parts), fee_lovelace + extra


def _last_change(lovelace: int, min_fee_a: int) -> tuple[int, int]:
    """Return the last change amount and the extra fee for its width.

    `lovelace` is the change if its encoding took five bytes.
    Just above 2^32 lovelace, the fee for four more bytes would bring the amount back below 2^32. Then the change
    is the largest amount of five bytes, and the fee takes the difference: at most 176 lovelace.
    """
    wide = FEE_SLACK_BYTES * min_fee_a
    if lovelace <= cbor.WIDTH_4_MAX:
        return lovelace, 0
    if lovelace - wide > cbor.WIDTH_4_MAX:
        return lovelace - wide, wide
    return cbor.WIDTH_4_MAX, lovelace - cbor.WIDTH_4_MAX


def assemble(plan: TxPlan, public_key: bytes, signature: bytes) -> bytes:
    """Return the signed transaction: [body, {0: set of one [key, signature]}, true, auxiliary data]."""
    return b"".join(
        (b"\x84", plan.body, _WITNESSES, public_key, _SIGNATURE, signature, _TRUE, plan.frame.auxiliary)
    )
