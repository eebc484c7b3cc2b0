"""The devnet's decoder against the real ledger's rules, then against scalus on random payments."""

import random
from collections.abc import Iterator
from dataclasses import replace

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_check.cases import OWNER, SECOND, SLOT, STRANGER, all_cases
from ledger_check.raw import array, encode_head, mapping, tagged
from ledger_check.scalus import Scalus, needs_scalus
from ledger_check.txkit import FEE_A, Draft, Key, Out, OutRef, asset, byron_address, cip20, ref

from payagent.devnet.ledger import UNSUPPORTED, LedgerError, Params, TxOut, check_tx, decode_tx

DECODER = "DecoderErrorDeserialiseFailure"
UTXOS = {ref(1): Out(OWNER.address(), 100_000_000)}
PAYEE = SECOND.address(base=False)
BASE = Draft((ref(1),), (Out(PAYEE, 10_000_000), Out(OWNER.address(), 0)), (OWNER,)).balanced(UTXOS)


def judge(tx: bytes, utxos: dict[OutRef, Out] | None = None) -> str | None:
    known = {
        at: TxOut(out.address, out.lovelace, out.assets, out.datum_hash, out.inline_datum, out.reference_script)
        for at, out in (UTXOS if utxos is None else utxos).items()
    }
    try:
        check_tx(decode_tx(tx), known, SLOT, Params())
    except LedgerError as error:
        return error.rule
    return None


def judge_form(tx: bytes) -> str | None:
    try:
        decode_tx(tx)
    except LedgerError as error:
        return error.rule
    return None


def paying(raw_output: bytes) -> bytes:
    payee, change = BASE.outputs
    return BASE.with_(outputs=(replace(payee, raw=raw_output), change)).balanced(UTXOS).tx()


def output(*pairs: tuple[int, bytes]) -> bytes:
    return mapping([(encode_head(0, key), value) for key, value in pairs])


ADDRESS, VALUE = cbor2.dumps(PAYEE), cbor2.dumps(10_000_000)
POLICY, NAME = cbor2.dumps(b"p" * 28), cbor2.dumps(b"n")
HASH = cbor2.dumps(b"h" * 32)
POINTER = cbor2.dumps(bytes([0x40]) + PAYEE[1:] + b"\x01\x01\x01")
BYRON = byron_address(magic=1)
MOST_UNITS = mapping([(POLICY, mapping([(NAME, b"\x1b" + b"\xff" * 8)]))])


def with_assets(assets: bytes) -> bytes:
    return output((0, ADDRESS), (1, array(VALUE, assets)))


def with_datum(datum: bytes) -> bytes:
    return output((0, ADDRESS), (1, VALUE), (2, array(b"\x01", tagged(24, cbor2.dumps(datum)))))


OUTPUTS: list[tuple[str, bytes, str | None]] = [
    ("map form", output((0, ADDRESS), (1, VALUE)), None),
    ("array form", array(ADDRESS, VALUE), None),
    ("array form, open length", b"\x9f" + ADDRESS + VALUE + b"\xff", None),
    ("array form with a datum hash", array(ADDRESS, VALUE, HASH), None),
    ("datum hash", output((0, ADDRESS), (1, VALUE), (2, array(b"\x00", HASH))), None),
    ("inline datum", with_datum(cbor2.dumps([1, -2, b"x", {b"k": [2**70]}])), None),
    ("inline datum, constructors", with_datum(tagged(121, b"\x9f\x01\xff")), None),
    ("inline datum, general constructor", with_datum(tagged(102, array(b"\x18\x99", array()))), None),
    ("inline datum, text", with_datum(cbor2.dumps("text")), DECODER),
    ("inline datum, unknown tag", with_datum(tagged(99, array())), DECODER),
    ("inline datum, 65 bytes in one piece", with_datum(cbor2.dumps(b"x" * 65)), DECODER),
    ("inline datum, trailing bytes", with_datum(b"\x01\x02"), DECODER),
    ("inline datum, deep", with_datum(b"\x81" * 200 + b"\x01"), UNSUPPORTED),
    ("datum of a third kind", output((0, ADDRESS), (1, VALUE), (2, array(b"\x02", HASH))), DECODER),
    ("reference script", output((0, ADDRESS), (1, VALUE), (3, tagged(24, b"\x41\x00"))), UNSUPPORTED),
    ("unknown field", output((0, ADDRESS), (1, VALUE), (4, b"\x00")), DECODER),
    ("field twice", output((0, ADDRESS), (1, VALUE), (1, VALUE)), DECODER),
    ("no value", output((0, ADDRESS)), DECODER),
    ("four items", array(ADDRESS, VALUE, HASH, HASH), DECODER),
    ("one item", array(ADDRESS), DECODER),
    ("units of 2**64 - 1", with_assets(MOST_UNITS), "ValueNotConservedUTxO"),
    ("lovelace as a big number", output((0, ADDRESS), (1, b"\xc2\x43\x98\x96\x80")), DECODER),
    ("negative lovelace", output((0, ADDRESS), (1, b"\x20")), DECODER),
    ("lovelace as a float", output((0, ADDRESS), (1, cbor2.dumps(1e7))), DECODER),
    ("value of three", output((0, ADDRESS), (1, array(VALUE, mapping([]), VALUE))), DECODER),
    ("policy twice", with_assets(mapping([(POLICY, mapping([(NAME, b"\x01")]))] * 2)), DECODER),
    ("asset twice", with_assets(mapping([(POLICY, mapping([(NAME, b"\x01")] * 2))])), DECODER),
    ("negative units", with_assets(mapping([(POLICY, mapping([(NAME, b"\x20")]))])), DECODER),
    ("policy of 27 bytes", with_assets(mapping([(cbor2.dumps(b"p" * 27), mapping([(NAME, b"\x01")]))])), DECODER),
    ("name of 33 bytes", with_assets(mapping([(POLICY, mapping([(cbor2.dumps(b"n" * 33), b"\x01")]))])), DECODER),
    ("address one short", output((0, cbor2.dumps(PAYEE[:-1])), (1, VALUE)), DECODER),
    ("address one long", output((0, cbor2.dumps(PAYEE + b"\x00")), (1, VALUE)), DECODER),
    ("address empty", output((0, b"\x40"), (1, VALUE)), DECODER),
    ("address in pieces", output((0, b"\x5f" + ADDRESS + b"\xff"), (1, VALUE)), DECODER),
    ("address of network 2", output((0, cbor2.dumps(b"\x62" + PAYEE[1:])), (1, VALUE)), DECODER),
    ("stake address", output((0, cbor2.dumps(b"\xe0" + PAYEE[1:])), (1, VALUE)), DECODER),
    ("pointer address", output((0, POINTER), (1, VALUE)), UNSUPPORTED),
    ("script address", output((0, cbor2.dumps(b"\x70" + PAYEE[1:])), (1, VALUE)), None),
    ("Byron, bad checksum", output((0, cbor2.dumps(BYRON[:-1] + bytes([BYRON[-1] ^ 1]))), (1, VALUE)), DECODER),
    ("Byron of mainnet", output((0, cbor2.dumps(byron_address(None))), (1, VALUE)), "WrongNetwork"),
    (
        "Byron with long attributes",
        output((0, cbor2.dumps(byron_address(1, b"p" * 63))), (1, VALUE)),
        "OutputBootAddrAttrsTooBig",
    ),
]


@pytest.mark.parametrize(("raw", "rule"), [row[1:] for row in OUTPUTS], ids=[row[0] for row in OUTPUTS])
def test_each_form_of_output_is_accepted_or_refused_by_its_rule(raw: bytes, rule: str | None) -> None:
    assert judge(paying(raw)) == rule


FIELDS = [(key, UNSUPPORTED) for key in (4, 5, 9, 19, 20, 21, 22)]
FIELDS += [(key, DECODER) for key in (6, 10, 12, 23, 99)]
FIELDS += [(key, DECODER) for key in (11, 13, 14, 16, 17, 18)]  # a script's: none of them may be an empty list


@pytest.mark.parametrize(("key", "rule"), FIELDS)
def test_body_fields_a_payment_never_has_are_refused(key: int, rule: str) -> None:
    draft = BASE.with_(extra=((encode_head(0, key), array()),)).balanced(UTXOS)
    assert judge(draft.tx()) == rule


@pytest.mark.parametrize(
    ("key", "rule"), [*((key, UNSUPPORTED) for key in (1, 2, 3, 4, 6)), (5, DECODER), (7, DECODER), (8, DECODER)]
)
def test_witnesses_a_payment_never_has_are_refused(key: int, rule: str) -> None:
    assert judge(BASE.tx(mapping([(encode_head(0, key), array())]))) == rule


KEY_WITNESS = BASE.witness(OWNER)
SHORT_WITNESS = array(cbor2.dumps(b"k" * 32), cbor2.dumps(b"s" * 63))
ALONZO_AUX = tagged(259, mapping([(b"\x00", cip20("x"))]))
FORMS: list[tuple[str, bytes, str | None]] = [
    ("tagged sets", BASE.with_(tag_sets=True).balanced(UTXOS).tx(), None),
    ("three items, as before Alonzo", array(BASE.body(), BASE.witness_set(KEY_WITNESS), b"\xf6"), DECODER),
    ("open array outside", b"\x9f" + BASE.tx()[1:] + b"\xff", None),
    ("empty witness set field", BASE.tx(mapping([(b"\x00", array())])), DECODER),
    (
        "signature of 63 bytes",
        BASE.tx(BASE.witness_set(SHORT_WITNESS)),
        DECODER,
    ),
    ("isValid as a number", BASE.tx().replace(b"\xf5\xf6", b"\x01\xf6"), DECODER),
    ("body field twice", BASE.with_(extra=((b"\x02", cbor2.dumps(BASE.fee)),)).tx(), DECODER),
    ("no bytes", b"", DECODER),
    ("a map", b"\xa0", DECODER),
    ("reserved head", b"\x84\x1c", DECODER),
    ("huge array", b"\x9b" + b"\xff" * 8, DECODER),
    ("huge string", b"\x84\x5b" + b"\x7f" * 8, DECODER),
    ("input index above 65535", BASE.with_(inputs=((ref(1)[0], 65_536),)).tx(), DECODER),
    ("metadata label twice", BASE.with_(aux=b"\xa2\x00\x00\x00\x00").balanced(UTXOS).tx(), DECODER),
    ("metadata with true", BASE.with_(aux=b"\xa1\x00\xf5").balanced(UTXOS).tx(), DECODER),
    ("metadata not UTF-8", BASE.with_(aux=b"\xa1\x00\x61\xff").balanced(UTXOS).tx(), DECODER),
    ("metadata in pieces", BASE.with_(aux=b"\xa1\x00\x7f\x61a\x61b\xff").balanced(UTXOS).tx(), None),
    ("metadata as in Allegra", BASE.with_(aux=array(cip20("x"), array())).balanced(UTXOS).tx(), None),
    (
        "metadata as in Alonzo",
        BASE.with_(aux=ALONZO_AUX).balanced(UTXOS).tx(),
        None,
    ),
    (
        "scripts in the auxiliary data",
        BASE.with_(aux=tagged(259, mapping([(b"\x01", array())]))).balanced(UTXOS).tx(),
        UNSUPPORTED,
    ),
]


@pytest.mark.parametrize(("tx", "rule"), [row[1:] for row in FORMS], ids=[row[0] for row in FORMS])
def test_each_form_of_transaction_is_accepted_or_refused_by_its_rule(tx: bytes, rule: str | None) -> None:
    assert judge(tx) == rule


OWNERS: list[tuple[str, Out, str]] = [
    ("script", Out(b"\x70" + PAYEE[1:], 100_000_000), "MissingScriptWitnessesUTXOW"),
    ("Byron", Out(BYRON, 100_000_000), UNSUPPORTED),
]


@pytest.mark.parametrize(("owner", "rule"), [row[1:] for row in OWNERS], ids=[row[0] for row in OWNERS])
def test_inputs_a_key_cannot_spend_are_refused(owner: Out, rule: str) -> None:
    assert judge(BASE.tx(), {ref(1): owner}) == rule


def test_every_field_of_a_transaction_is_decoded_from_its_bytes() -> None:
    draft = BASE.with_(start=3, aux=cip20("x"), body_network_id=0).balanced(UTXOS)
    tx = decode_tx(draft.tx())
    assert (tx.tx_id, tx.raw, tx.body) == (draft.tx_id, draft.tx(), draft.body())
    assert tx.inputs == draft.inputs
    assert tx.outputs == tuple(TxOut(out.address, out.lovelace, out.assets) for out in draft.outputs)
    assert (tx.fee_lovelace, tx.ttl_slot, tx.start_slot, tx.network_id) == (draft.fee, draft.ttl, 3, 0)
    assert (tx.aux, tx.size_bytes) == (draft.aux, len(draft.tx()) - 1)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_any_bytes_decode_or_raise_a_ledger_error(data: st.DataObject) -> None:
    tx = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tx) - 1))
        tx[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    assert judge_form(bytes(tx)) in (None, DECODER, UNSUPPORTED)


SEEDS = [case.tx for case in all_cases() if len(case.tx) < 2_000]


# --- reference scripts on what is spent ----------------------------------------------------------------------


def _spending_a_script(size_bytes: int, fee_lovelace: int) -> tuple[bytes, dict[OutRef, Out]]:
    script = array(b"\x02", cbor2.dumps(b"s" * size_bytes)).hex()
    utxos = {ref(1): replace(UTXOS[ref(1)], reference_script=script)}
    return BASE.balanced(utxos, extra_fee=fee_lovelace - FEE_A).tx(), utxos


# 15 lovelace per byte, and a fifth more for every further 25,600 bytes
SCRIPT_FEES = [
    (25_600, 384_000),
    (25_601, 384_018),
    (51_201, 844_821),
    (204_800, 6_335_648),
]


@needs_scalus
@pytest.mark.parametrize(("size_bytes", "fee_lovelace"), SCRIPT_FEES)
def test_the_fee_for_reference_scripts_grows_in_tiers(size_bytes: int, fee_lovelace: int) -> None:
    enough, utxos = _spending_a_script(size_bytes, fee_lovelace)
    short, _ = _spending_a_script(size_bytes, fee_lovelace - 1)
    assert (judge(enough, utxos), judge(short, utxos)) == (None, "FeeTooSmallUTxO")
    with Scalus() as scalus:
        assert scalus.validate(enough, utxos, SLOT, 0) is None
        assert "fee" in str(scalus.validate(short, utxos, SLOT, 0))


def test_reference_scripts_of_more_than_200_kib_are_refused() -> None:
    assert judge(*_spending_a_script(204_801, 10_000_000)) == "ConwayTxRefScriptsSizeTooBig"


# --- random payments with random mistakes, judged by both ----------------------------------------------


UNITS = [1, 23, 24, 2**32, 2**60]  # scalus cannot read units from 2**63 on; the real ledger can, to 2**64 - 1


def _bent(seed: int) -> tuple[bytes, dict[OutRef, Out]]:
    """A random payment, in about two of three cases near one limit of the rules, always signed."""
    dice = random.Random(seed)
    utxos: dict[OutRef, Out] = {}
    keys: list[Key] = []
    for number in range(dice.randint(1, 4)):
        key = dice.choice([OWNER, SECOND])
        keys = list(dict.fromkeys([*keys, key]))
        names = [asset(dice.randrange(4), b"%d" % i) for i in range(dice.choice([0, 0, 1, 30]))]
        assets = {name: dice.choice(UNITS) for name in names}
        utxos[ref(number, dice.choice([0, 1, 300]))] = Out(key.address(), dice.randrange(5, 90) * 10**6, assets)
    held = [name for out in utxos.values() for name in out.assets]
    sent = {dice.choice(held): 1} if held and dice.random() < 0.6 else {}
    payee = Out(Key.extended(9).address(base=dice.random() < 0.5), 1_000_000, sent)
    payee = replace(payee, lovelace=payee.min_lovelace() + dice.choice([0, 0, 0, -1, 500]))
    draft = Draft(tuple(utxos), (payee, Out(OWNER.address(), 0)), tuple(keys))
    draft = draft.with_(
        ttl=dice.choice([SLOT, SLOT + 1, SLOT + 9, None, SLOT + 9]),
        start=dice.choice([None, None, SLOT, SLOT + 1]),
        aux=dice.choice([None, None, cip20("x" * 64), cip20("x" * 65)]),
        body_network_id=dice.choice([None, None, 0, 1]),
        tag_sets=dice.random() < 0.5,
    )
    if dice.random() < 0.15:
        draft = draft.with_(keys=(STRANGER, *keys) if dice.random() < 0.5 else (STRANGER,))
    return draft.balanced(utxos, extra_fee=dice.choice([0, 0, 0, 200, -44, -45])).tx(), utxos


def _verdicts(count: int) -> Iterator[tuple[int, str | None, str | None]]:
    with Scalus() as scalus:
        for seed in range(count):
            tx, utxos = _bent(seed)
            yield seed, judge(tx, utxos), scalus.validate(tx, utxos, SLOT, 0)


@needs_scalus
def test_devnet_and_scalus_agree_on_random_payments() -> None:
    reached: dict[str | None, int] = {}
    for seed, ours, theirs in _verdicts(600):
        assert (ours is None) == (theirs is None), f"seed {seed}: devnet {ours}, scalus {theirs}"
        reached[ours] = reached.get(ours, 0) + 1
    assert reached[None] >= 60
    assert {
        "FeeTooSmallUTxO",
        "BabbageOutputTooSmallUTxO",
        "OutsideValidityIntervalUTxO",
        "InvalidMetadata",
        "MissingVKeyWitnessesUTXOW",
        "WrongNetworkInTxBody",
    } <= set(reached)
