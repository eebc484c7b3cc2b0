"""Coin selection: chooses the UTxOs that pay for a transaction. Deterministic.

Start with `choose`. It tries three sequences:
1. The smallest UTxOs that suffice, avoiding UTxOs with other assets. This keeps the wallet tidy.
2. The UTxOs with most of the needed asset, then those with most lovelace.
3. The UTxOs with most lovelace.

So it finds a payment whenever the largest UTxOs fit one transaction. If all UTxOs together would leave dust as
change, it tries to leave one out so that no change remains.

Never: randomness; a scan of the whole wallet if few UTxOs pay.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from enum import Enum
from itertools import islice

from payagent.core.money import LOVELACE, format_amount
from payagent.core.problems import Refused
from payagent.wallet import cbor_write as cbor
from payagent.wallet.tx_plan import FEE_SLACK_BYTES, Draft, TxRequest
from payagent.wallet.utxo_index import Utxo, UtxoIndex

_LOOK_AHEAD = 16
_LEAST_INPUT_SIZE = 36
_INDEX_BYTES_MAX = 8  # bytes of an index beyond the first, which `_LEAST_INPUT_SIZE` includes

_Sequence = Callable[[Draft, UtxoIndex], Iterator[Utxo]]


class _Filled(Enum):
    """The result of adding UTxOs: they pay, no more fit, or all together are too little."""

    PAYS, FULL, SHORT = range(3)


def choose(utxos: UtxoIndex, order: TxRequest, nonce_utxo: Utxo | None) -> Draft:
    """Choose UTxOs that pay for the request, including `nonce_utxo` if given.

    Refused: `not_enough_funds` with the missing amount; `utxos_too_small/inputs` if the funds are spread over more
    UTxOs than fit one transaction; `utxos_too_small/transaction_size` if the outputs alone do not fit.
    """
    if order.size(1, _LEAST_INPUT_SIZE, 0, 0) > order.frame.parameters.max_tx_size:
        raise Refused(
            "utxos_too_small/transaction_size", f"{len(order.planned)} outputs do not fit one transaction"
        )
    _require_totals(utxos, order, nonce_utxo, input_count=min(1, len(utxos)))
    for sequence in (_frugal, _assets_then_largest, _largest):
        draft = Draft(order, [nonce_utxo] if nonce_utxo else [])
        filled = _fill(draft, utxos, sequence)
        if filled is _Filled.PAYS:
            return draft
        if filled is _Filled.SHORT:
            if exact := _without_one(draft, utxos, nonce_utxo):
                return exact
            raise _not_enough(LOVELACE, draft.shortfall(), "to keep what would be left as change")
    _require_totals(utxos, order, nonce_utxo, input_count=len(utxos))
    raise Refused(
        "utxos_too_small/inputs",
        f"the outputs need more UTxOs than fit one transaction; the wallet has {len(utxos)}",
    )


def choose_all(
    utxos: UtxoIndex, order: TxRequest, nonce_utxo: Utxo | None, barred: Set[str] = frozenset()
) -> Draft:
    """Choose as many UTxOs as fit one transaction that pays everything to its rest outputs.

    Smallest first, so a consolidation clears the wallet's dust. `nonce_utxo` comes before all others. UTxOs with a
    `barred` asset are left out. Refused: `not_enough_funds` if they cannot pay the fee and the smallest output.
    """
    most = order.frame.parameters.max_tx_size // _LEAST_INPUT_SIZE
    for sequence in (utxos.smallest(), utxos.largest()):
        first = [] if nonce_utxo is None else [nonce_utxo]
        others = (utxo for utxo in sequence if utxo not in first and not _holds(utxo, barred))
        draft = _longest_prefix(order, [*first, *islice(others, most - len(first))])
        if draft.pays():
            return draft
    raise _not_enough(LOVELACE, draft.shortfall(), "to pay the fee and the smallest output")


def take(utxos: Sequence[Utxo], order: TxRequest) -> Draft:
    """Use exactly these UTxOs. Refused: `not_enough_funds`."""
    draft = Draft(order, utxos)
    for asset in order.assets:
        if missing := draft.lacking(asset):
            raise _not_enough(asset, missing, "to pay the outputs")
    if not draft.is_exact() and (missing := draft.shortfall()) > 0:
        raise _not_enough(LOVELACE, missing, "to keep what would be left as change")
    return draft


def smallest_of(utxos: Sequence[Utxo]) -> Utxo:
    """Return the smallest UTxO of pure ADA, or else the smallest."""
    return min(utxos, key=lambda utxo: (bool(utxo.assets), utxo.lovelace, utxo.ref))


def _holds(utxo: Utxo, assets: Set[str]) -> bool:
    return any(asset in assets for asset, _ in utxo.assets)


def _require_totals(utxos: UtxoIndex, order: TxRequest, nonce_utxo: Utxo | None, input_count: int) -> None:
    """Refuse a request that all UTxOs together cannot pay, with the fee of `input_count` inputs."""
    nonce_draft = Draft(order, [nonce_utxo] if nonce_utxo and nonce_utxo.ref not in utxos else [])
    for asset in order.assets:
        if (missing := nonce_draft.lacking(asset) - utxos.totals.get(asset, 0)) > 0:
            raise _not_enough(asset, missing, "to pay the outputs")
    if (missing := nonce_draft.gap(more_inputs=input_count) - utxos.totals.get(LOVELACE, 0)) > 0:
        raise _not_enough(LOVELACE, missing, "to pay the outputs and the fee")


def _not_enough(asset: str, missing: int, why: str) -> Refused:
    return Refused(
        "not_enough_funds",
        f"{format_amount(asset, missing)} are missing {why}",
        asset=asset,
        shortfall=str(missing),
    )


def _fill(draft: Draft, utxos: UtxoIndex, sequence: _Sequence) -> _Filled:
    """Add UTxOs until they pay or no more fit. The caller has checked that one input fits."""
    for utxo in sequence(draft, utxos):
        if draft.utxos:
            if draft.pays():
                return _Filled.PAYS
            if not draft.has_room():
                return _Filled.FULL
        if utxo.ref in draft.refs:
            continue
        last = _completing(draft, utxos)
        draft.add(last or utxo)
    if draft.pays():
        return _Filled.PAYS
    return _Filled.SHORT if draft.shortfall() > 0 else _Filled.FULL


def _completing(draft: Draft, utxos: UtxoIndex) -> Utxo | None:
    """Return the smallest UTxO of pure ADA that completes the draft, without change or with enough for change."""
    gap = draft.gap(more_inputs=1)
    nearest = None if draft.lacks_assets() else next(utxos.pure_from(gap), None)
    if nearest is None:
        return None
    most = gap + _INDEX_BYTES_MAX * draft.order.frame.parameters.min_fee_a
    if nearest.lovelace <= most and draft.may_be_exact():
        for utxo in islice(utxos.pure_from(gap), _LOOK_AHEAD):
            if utxo.lovelace > most:
                break
            if utxo.lovelace - _index_fee(draft, utxo) == gap and utxo.ref not in draft.refs:
                return utxo
    least = draft.shortfall(more_inputs=1)
    for utxo in islice(utxos.pure_from(least), _LOOK_AHEAD):
        if utxo.lovelace - _index_fee(draft, utxo) >= least and utxo.ref not in draft.refs:
            return utxo
    return None


def _without_one(draft: Draft, utxos: UtxoIndex, nonce_utxo: Utxo | None) -> Draft | None:
    """Leave out one UTxO if all together leave too little for change and the others balance exactly.

    An amount too small for change is less than two UTxOs hold, so leaving out more is never needed.
    """
    gap = draft.exact_gap()
    if gap is None:
        return None
    saved = draft.order.frame.parameters.min_fee_a * _LEAST_INPUT_SIZE
    for left_out in islice(utxos.pure_from(saved - gap), _LOOK_AHEAD):
        rest = Draft(draft.order, (utxo for utxo in draft.utxos if utxo.ref != left_out.ref))
        if left_out != nonce_utxo and rest.pays():
            return rest
    return None


def _index_fee(draft: Draft, utxo: Utxo) -> int:
    """Return the fee of an index beyond the one byte that `more_inputs` counts."""
    return draft.order.frame.parameters.min_fee_a * (cbor.head_size(utxo.index) - 1)


def _while_lacking(draft: Draft, asset: str, source: Iterator[Utxo]) -> Iterator[Utxo]:
    while draft.lacking(asset) and (utxo := next(source, None)):
        yield utxo


def _frugal(draft: Draft, utxos: UtxoIndex) -> Iterator[Utxo]:
    for asset in draft.order.assets:
        if missing := draft.lacking(asset):
            near = islice(utxos.asset_from(asset, missing), _LOOK_AHEAD)
            yield from sorted(near, key=lambda utxo: len(utxo.assets))[:1]
        yield from _while_lacking(draft, asset, utxos.asset_largest(asset))
    yield from utxos.pure_largest()
    yield from utxos.mixed_largest()


def _assets_then_largest(draft: Draft, utxos: UtxoIndex) -> Iterator[Utxo]:
    for asset in draft.order.assets:
        yield from _while_lacking(draft, asset, utxos.asset_largest(asset))
    yield from utxos.largest()


def _largest(_: Draft, utxos: UtxoIndex) -> Iterator[Utxo]:
    return utxos.largest()


def _longest_prefix(order: TxRequest, utxos: Sequence[Utxo]) -> Draft:
    """Return a draft of the longest prefix of the UTxOs that fits one transaction."""
    low, high = 1, len(utxos)
    while low < high:
        middle = (low + high + 1) // 2
        size = Draft(order, utxos[:middle]).size_with_rest() + FEE_SLACK_BYTES
        if size <= order.frame.parameters.max_tx_size:
            low = middle
        else:
            high = middle - 1
    return Draft(order, utxos[:low])
