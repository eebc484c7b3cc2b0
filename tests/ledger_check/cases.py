"""The mutation table: 65 transactions around the edges of the Conway rules a payment meets.

For every case the verdict of the real ledger (its source was read for each: None, or the rule that refuses it)
and whether the bare scalus errs on it. Where a rule has two sides, both sides are here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product

import cbor2
from ledger_check.raw import array, encode_assets, mapping
from ledger_check.txkit import (
    FEE_A,
    FEE_B,
    Draft,
    Key,
    Out,
    OutRef,
    asset,
    blake,
    byron_address,
    cip20,
    ref,
)

SLOT = 500_000
OWNER, SECOND, STRANGER, PLAIN = Key.extended(1), Key.extended(2), Key.extended(3), Key.plain(4)
PAYEE = Key.extended(9).address(base=False)
DECODER = "DecoderErrorDeserialiseFailure"


@dataclass(frozen=True)
class Case:
    """`rule` is the ledger's rule that refuses the transaction, None when it is valid."""

    name: str
    tx: bytes
    utxos: Mapping[OutRef, Out]
    rule: str | None
    network_id: int = 0
    slot: int = SLOT
    scalus_errs: bool = False


Made = tuple[Draft | bytes, Mapping[OutRef, Out]]
_MAKERS: list[tuple[str, str | None, Callable[[], Made], int, int, bool]] = []


def _case(
    name: str, rule: str | None = None, *, network_id: int = 0, slot: int = SLOT, scalus_errs: bool = False
) -> Callable[[Callable[[], Made]], Callable[[], Made]]:
    def register(make: Callable[[], Made]) -> Callable[[], Made]:
        _MAKERS.append((name, rule, make, network_id, slot, scalus_errs))
        return make

    return register


@cache
def all_cases() -> tuple[Case, ...]:
    cases = []
    for name, rule, make, network_id, slot, scalus_errs in _MAKERS:
        made, utxos = make()
        tx = made if isinstance(made, bytes) else made.tx()
        cases.append(Case(name, tx, utxos, rule, network_id, slot, scalus_errs))
    return tuple(cases)


# --- what the cases start from ------------------------------------------------------------------------------

TOKEN = asset(1)


def _ada(network_id: int = 0, key: Key = OWNER, **changes: object) -> tuple[Draft, dict[OutRef, Out]]:
    """100 ADA in, 10 ADA to the payee, the rest back."""
    utxos = {ref(1): Out(key.address(network_id), 100_000_000)}
    payee = Out(bytes([PAYEE[0] | network_id]) + PAYEE[1:], 10_000_000)
    draft = Draft((ref(1),), (payee, Out(key.address(network_id), 0)), (key,))
    return draft.with_(**changes), utxos


def _token(**changes: object) -> tuple[Draft, dict[OutRef, Out]]:
    """100 ADA and 1000 units in, 2 ADA and 400 units to the payee, the rest back."""
    utxos = {ref(1): Out(OWNER.address(), 100_000_000, {TOKEN: 1000})}
    payee = Out(PAYEE, 2_000_000, {TOKEN: 400})
    return Draft((ref(1),), (payee, Out(OWNER.address(), 0)), (OWNER,)).with_(**changes), utxos


def _done(pair: tuple[Draft, dict[OutRef, Out]], **balance: int) -> tuple[Draft, dict[OutRef, Out]]:
    draft, utxos = pair
    return draft.balanced(utxos, **balance), utxos


def _with_outputs(pair: tuple[Draft, dict[OutRef, Out]], payee: Out, **balance: int) -> Made:
    draft, utxos = pair
    return draft.with_(outputs=(payee, draft.outputs[-1])).balanced(utxos, **balance), utxos


# --- plain payments -----------------------------------------------------------------------------------------


@_case("valid-ada")
def _() -> Made:
    return _done(_ada())


@_case("valid-token")
def _() -> Made:
    return _done(_token())


@_case("valid-ada-mainnet", network_id=1)
def _() -> Made:
    return _done(_ada(1))


@_case("valid-plain-key")
def _() -> Made:
    return _done(_ada(key=PLAIN))


@_case("valid-mixed-3x20assets-2keys-cip20")
def _() -> Made:
    utxos = {}
    for number, key in enumerate((OWNER, SECOND, OWNER)):
        assets = {asset(20 * number + i, b"a%d" % i): 1 + i * 10**9 for i in range(20)}
        utxos[ref(number)] = Out(key.address(), 20_000_000, assets)
    payee = Out(PAYEE, 3_000_000, {asset(25, b"a5"): 7})
    draft = Draft(tuple(utxos), (payee, Out(OWNER.address(), 0)), (OWNER, SECOND), aux=cip20("invoice 1", "ok"))
    return draft.with_(tag_sets=True).balanced(utxos), utxos


# --- fee ----------------------------------------------------------------------------------------------------

for _kind, _base in (("ada", _ada), ("token", _token)):
    for _name, _less, _rule in (
        ("fullsize-min", 0, None),
        ("fullsize-min-minus-1", 1, None),
        ("ledger-min", FEE_A, None),
        ("ledger-min-minus-1", FEE_A + 1, "FeeTooSmallUTxO"),
    ):
        _case(f"{_kind}-fee-{_name}", _rule)(
            lambda base=_base, less=_less: _done(base(), extra_fee=-less)  # type: ignore[misc]
        )


# --- least lovelace and balance -----------------------------------------------------------------------------


@_case("ada-minutxo-exact")
def _() -> Made:
    payee = Out(PAYEE, 1_000_000)
    return _with_outputs(_ada(), replace(payee, lovelace=payee.min_lovelace()))


@_case("ada-minutxo-minus-1", "BabbageOutputTooSmallUTxO")
def _() -> Made:
    payee = Out(PAYEE, 1_000_000)
    return _with_outputs(_ada(), replace(payee, lovelace=payee.min_lovelace() - 1))


@_case("token-minutxo-exact")
def _() -> Made:
    payee = Out(PAYEE, 1_000_000, {TOKEN: 400})
    return _with_outputs(_token(), replace(payee, lovelace=payee.min_lovelace()))


@_case("token-minutxo-minus-1", "BabbageOutputTooSmallUTxO")
def _() -> Made:
    payee = Out(PAYEE, 1_000_000, {TOKEN: 400})
    return _with_outputs(_token(), replace(payee, lovelace=payee.min_lovelace() - 1))


def _shift_change(pair: tuple[Draft, dict[OutRef, Out]], lovelace: int = 0, units: int = 0) -> Made:
    draft, utxos = _done(pair)
    payee, change = draft.outputs
    assets = {name: held + units for name, held in change.assets.items()}
    return draft.with_(outputs=(payee, replace(change, lovelace=change.lovelace + lovelace, assets=assets))), utxos


for _sign in (1, -1):
    _case(f"ada-unbalanced-out{_sign:+d}", "ValueNotConservedUTxO")(
        lambda sign=_sign: _shift_change(_ada(), lovelace=sign)  # type: ignore[misc]
    )
for _sign in (1, -1):
    _case(f"token-unbalanced-out{_sign:+d}", "ValueNotConservedUTxO")(
        lambda sign=_sign: _shift_change(_token(), units=sign)  # type: ignore[misc]
    )


@_case("token-change-dropped", "ValueNotConservedUTxO")
def _() -> Made:
    draft, utxos = _done(_token())
    payee, change = draft.outputs
    return draft.with_(outputs=(payee, replace(change, assets={}))), utxos


# --- signatures ---------------------------------------------------------------------------------------------


@_case("sig-bitflip", "InvalidWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_ada())
    witness = draft.witness(OWNER)
    return draft.tx(draft.witness_set(witness[:-9] + bytes([witness[-9] ^ 1]) + witness[-8:])), utxos


@_case("sig-right-vkey-other-key", "InvalidWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_ada())
    foreign = array(cbor2.dumps(OWNER.public), cbor2.dumps(STRANGER.sign(blake(draft.body()))))
    return draft.tx(draft.witness_set(foreign)), utxos


@_case("sig-body-changed-after", "InvalidWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_ada())
    witnesses = draft.witness_set(draft.witness(OWNER))
    return draft.with_(ttl=1_000_001).tx(witnesses), utxos


@_case("witness-missing", "MissingVKeyWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_ada())
    return draft.tx(draft.witness_set()), utxos


@_case("witness-wrong-key-only", "MissingVKeyWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_ada())
    return draft.tx(draft.witness_set(draft.witness(STRANGER))), utxos


def _two_owners() -> tuple[Draft, dict[OutRef, Out]]:
    utxos = {ref(1): Out(OWNER.address(), 50_000_000), ref(2): Out(SECOND.address(), 50_000_000)}
    return Draft(tuple(utxos), (Out(PAYEE, 10_000_000), Out(OWNER.address(), 0)), (OWNER, SECOND)), utxos


@_case("witness-missing-1-of-2", "MissingVKeyWitnessesUTXOW")
def _() -> Made:
    draft, utxos = _done(_two_owners())
    return draft.tx(draft.witness_set(draft.witness(SECOND))), utxos


@_case("witness-extra")
def _() -> Made:
    return _done(_ada(keys=(OWNER, STRANGER)))


# --- validity interval --------------------------------------------------------------------------------------

for _name, _limits, _rule in (
    ("ttl-last-valid-slot", {"ttl": SLOT + 1}, None),
    ("ttl-eq-slot", {"ttl": SLOT}, "OutsideValidityIntervalUTxO"),
    ("ttl-expired", {"ttl": SLOT - 1}, "OutsideValidityIntervalUTxO"),
    ("start-eq-slot", {"start": SLOT}, None),
    ("start-in-future", {"start": SLOT + 1}, "OutsideValidityIntervalUTxO"),
):
    _case(_name, _rule)(lambda limits=_limits: _done(_ada(**limits)))  # type: ignore[misc]


# --- inputs -------------------------------------------------------------------------------------------------


@_case("unknown-input", "BadInputsUTxO")
def _() -> Made:
    draft, _ = _done(_ada())
    return draft, {ref(7): Out(OWNER.address(), 100_000_000)}


@_case("input-wrong-index", "BadInputsUTxO")
def _() -> Made:
    draft, utxos = _done(_ada())
    return draft.with_(inputs=(ref(1, 1),)), utxos


@_case("no-inputs", "InputSetEmptyUTxO")
def _() -> Made:
    draft, utxos = _done(_ada())
    return draft.with_(inputs=()), utxos


# --- sizes --------------------------------------------------------------------------------------------------


def _many_outputs(count: int) -> tuple[Draft, dict[OutRef, Out]]:
    draft, utxos = _ada()
    utxos = {ref(1): Out(OWNER.address(), 2_000_000_000)}
    payees = tuple(Out(PAYEE, 1_000_000 + number) for number in range(count))
    return _done((draft.with_(outputs=(*payees, draft.outputs[-1])), utxos))


def _outputs_that_fit() -> int:
    one, two = (len(_many_outputs(count)[0].tx()) for count in (300, 301))
    return 300 + (16_384 - one) // (two - one)


@_case("size-largest-under-16384")
def _() -> Made:
    return _many_outputs(_outputs_that_fit())


@_case("size-over-16384", "MaxTxSizeUTxO")
def _() -> Made:
    return _many_outputs(_outputs_that_fit() + 1)


# --- network ids --------------------------------------------------------------------------------------------


@_case("net-output-mainnet-addr", "WrongNetwork")
def _() -> Made:
    return _with_outputs(_ada(), Out(bytes([PAYEE[0] | 1]) + PAYEE[1:], 10_000_000))


@_case("net-body-id-right")
def _() -> Made:
    return _done(_ada(body_network_id=0))


@_case("net-body-id-wrong", "WrongNetworkInTxBody")
def _() -> Made:
    return _done(_ada(body_network_id=1))


# --- value size ---------------------------------------------------------------------------------------------


def _payee_of_value_size(size_bytes: int) -> Out:
    """An output whose value takes exactly so many bytes: the last asset's name and units fit it in."""
    assets = {asset(1, b"%032d" % number): 1 for number in range(141)}
    for name_bytes, units in product(range(33), (1, 24)):
        payee = Out(PAYEE, 30_000_000, {**assets, asset(1, b"z" * name_bytes): units})
        if payee.value_size() == size_bytes:
            return payee
    raise ValueError(f"no value of {size_bytes} bytes")


def _big_value_of(size_bytes: int) -> Made:
    payee = _payee_of_value_size(size_bytes)
    utxos = {ref(1): Out(OWNER.address(), 100_000_000, payee.assets)}
    return _done((Draft((ref(1),), (payee, Out(OWNER.address(), 0)), (OWNER,)), utxos))


@_case("valuesize-largest-under-5000")
def _() -> Made:
    return _big_value_of(5_000)


@_case("valuesize-over-5000", "OutputTooBigUTxO")
def _() -> Made:
    return _big_value_of(5_001)


# --- form ---------------------------------------------------------------------------------------------------


@_case("zero-qty-token-in-output", DECODER, scalus_errs=True)
def _() -> Made:
    assets = encode_assets({asset(2): 0})
    return _with_outputs(_ada(), Out(PAYEE, 10_000_000).with_value(array(cbor2.dumps(10_000_000), assets)))


@_case("duplicate-input-in-set", DECODER, scalus_errs=True)
def _() -> Made:
    return _done(_ada(inputs=(ref(1), ref(1))))


def _wide_fee(pair: tuple[Draft, dict[OutRef, Out]], extra_bytes: int) -> Made:
    draft, utxos = pair
    fee = FEE_A * (len(draft.balanced(utxos).tx()) + extra_bytes) + FEE_B
    return draft.balanced(utxos, fee).with_(raw_fee=b"\x1b" + fee.to_bytes(8, "big")), utxos


@_case("noncanonical-int-fee-ok")
def _() -> Made:
    return _wide_fee(_ada(), 4)


@_case("noncanonical-int-fee-low", "FeeTooSmallUTxO")
def _() -> Made:
    return _wide_fee(_ada(), 0)


@_case("aux-hash-right")
def _() -> Made:
    return _done(_ada(aux=cip20("invoice 1")))


@_case("aux-hash-wrong", "ConflictingMetadataHash")
def _() -> Made:
    return _done(_ada(aux=cip20("invoice 1"), aux_hash=blake(b"other")))


@_case("aux-hash-missing", "MissingTxBodyMetadataHash")
def _() -> Made:
    return _done(_ada(aux=cip20("invoice 1"), aux_hash=None))


@_case("aux-data-missing", "MissingTxMetadata")
def _() -> Made:
    return _done(_ada(aux_hash=blake(cip20("invoice 1"))))


@_case("aux-string-65-bytes", "InvalidMetadata")
def _() -> Made:
    return _done(_ada(aux=cip20("x" * 65)))


@_case("trailing-bytes", DECODER)
def _() -> Made:
    draft, utxos = _done(_ada())
    return draft.tx() + b"\x00", utxos


@_case("isvalid-false", "ValidationTagMismatch")
def _() -> Made:
    return _done(_ada(is_valid=False))


@_case("empty-multiasset-map-in-output")
def _() -> Made:
    value = array(cbor2.dumps(10_000_000), mapping([]))
    return _with_outputs(_ada(), Out(PAYEE, 10_000_000).with_value(value))


@_case("policy-with-empty-asset-map", DECODER, scalus_errs=True)
def _() -> Made:
    policy = bytes.fromhex(asset(2)[:56])
    value = array(cbor2.dumps(10_000_000), mapping([(cbor2.dumps(policy), mapping([]))]))
    return _with_outputs(_ada(), Out(PAYEE, 10_000_000).with_value(value))


# scalus refuses it while the fee is that of one witness; with its size paid for, only the decoder's rule is left.
@_case("duplicate-vkey-in-witness-set", DECODER, scalus_errs=True)
def _() -> Made:
    return _done(_ada(keys=(OWNER, OWNER)))


# --- addresses, datums, scripts -----------------------------------------------------------------------------


@_case("byron-payee")
def _() -> Made:
    return _with_outputs(_ada(), Out(byron_address(magic=1, path=b"p" * 28), 10_000_000))


def _spend_special(**special: str) -> tuple[Draft, dict[OutRef, Out]]:
    draft, _ = _ada()
    return draft, {ref(1): Out(OWNER.address(), 100_000_000, **special)}  # type: ignore[arg-type]


@_case("input-with-inline-datum")
def _() -> Made:
    return _done(_spend_special(inline_datum=cbor2.dumps([1, b"two", {3: 4}]).hex()))


SCRIPT = bytes.fromhex("4e4d01000033222220051200120011")
_SCRIPT_REF = array(b"\x01", cbor2.dumps(SCRIPT)).hex()


@_case("input-with-refscript-fee-ok")
def _() -> Made:
    return _done(_spend_special(reference_script=_SCRIPT_REF), extra_fee=15 * len(SCRIPT) - FEE_A)


@_case("input-with-refscript-fee-without-script-part", "FeeTooSmallUTxO")
def _() -> Made:
    return _done(_spend_special(reference_script=_SCRIPT_REF), extra_fee=-FEE_A)


# --- the size limit to the byte -----------------------------------------------------------------------------


def _padded(size_bytes: int) -> Made:
    """A payment whose metadata brings it to exactly so many bytes."""

    def made(lines: int, last: int) -> tuple[Draft, dict[OutRef, Out]]:
        return _done(_ada(aux=cip20(*["x" * 64] * lines, "x" * last)))

    lines = (size_bytes - len(made(0, 0)[0].tx())) // 66 - 1
    for more in range(3):
        for last in range(65):
            draft, utxos = made(lines + more, last)
            if len(draft.tx()) == size_bytes:
                return draft, utxos
    raise ValueError(f"no transaction of {size_bytes} bytes")


for _size, _rule, _errs in ((16_384, None, False), (16_385, None, True), (16_386, "MaxTxSizeUTxO", False)):
    _case(f"size-exact-{_size}", _rule, scalus_errs=_errs)(
        lambda size=_size: _padded(size)  # type: ignore[misc]
    )
