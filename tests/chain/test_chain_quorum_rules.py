"""How the answers of several providers are combined, as tables."""

from dataclasses import replace

import pytest

from payagent.chain.provider import AddressTx, BlockSeen, ChainUtxo, Found, Movement, NotFound, Read, Unknown, Why
from payagent.chain.quorum_rules import (
    GAP_MAX_MS,
    PATIENCE_MS,
    ProviderAnswer,
    Silence,
    is_lasting,
    missed,
    weigh_block,
    weigh_movement,
    weigh_transactions,
    weigh_tx,
    weigh_utxos,
)
from payagent.core.aggregate import TxSeen

TX = "aa" * 32


def tx(block: str = "b1", height: int = 500, slot: int = 10) -> Found[TxSeen]:
    return Found(TxSeen(TX, block * 32, height, slot))


NO, MUTE = NotFound(), Unknown("time-out")


def said(*reads: tuple[int, Read[TxSeen]]) -> list[ProviderAnswer[TxSeen]]:
    """One answer per provider, with the slot of its tip; slots are small here and heights large."""
    return [ProviderAnswer(f"p{number}", slot, read) for number, (slot, read) in enumerate(reads, 1)]


FOUND = {
    "one alone is taken at its word": said((12, tx())),
    "two agree": said((12, tx()), (11, tx())),
    "two of three agree, one denies": said((12, tx()), (12, tx()), (12, NO)),
    "two of three agree, one knows another block": said((12, tx()), (12, tx()), (12, tx("b2"))),
    "two of three agree, one cannot tell": said((12, tx()), (12, MUTE), (12, tx())),
}
DENIED = {
    "one alone is taken at its word": said((12, NO)),
    "two deny": said((12, NO), (12, NO)),
    "two of three deny, one cannot tell": said((12, NO), (12, NO), (12, MUTE)),
}
OPEN = {
    "nobody": (said(), Why.UNCLEAR),
    "one alone cannot tell": (said((12, MUTE)), Why.UNCLEAR),
    "one shows, one cannot tell": (said((12, tx()), (12, MUTE)), Why.UNCLEAR),
    "one denies, one cannot tell": (said((12, NO), (12, MUTE)), Why.UNCLEAR),
    "one shows, one denies": (said((12, tx()), (12, NO)), Why.DISPUTE),
    "one shows, one denies from that slot": (said((12, tx()), (10, NO)), Why.DISPUTE),
    "one shows, one has not come so far": (said((12, tx()), (9, NO)), Why.NOT_YET),
    "two blocks": (said((12, tx()), (12, tx("b2"))), Why.DISPUTE),
    "the same block at two heights": (said((12, tx()), (12, tx(height=11))), Why.DISPUTE),
    "the same block at two slots": (said((12, tx()), (12, tx(slot=11))), Why.DISPUTE),
    "one of three shows, two deny": (said((12, tx()), (12, NO), (12, NO)), Why.DISPUTE),
    "two against two": (said((12, tx()), (12, tx()), (12, tx("b2")), (12, tx("b2"))), Why.DISPUTE),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_transaction_is_found_when_enough_providers_show_it(name: str) -> None:
    assert weigh_tx(FOUND[name]) == tx()


@pytest.mark.parametrize("name", DENIED)
def test_a_transaction_is_not_found_when_enough_providers_deny_it(name: str) -> None:
    assert weigh_tx(DENIED[name]) == NO


@pytest.mark.parametrize("name", OPEN)
def test_a_transaction_stays_unknown_without_agreement(name: str) -> None:
    testimonies, why = OPEN[name]
    read = weigh_tx(testimonies)
    assert isinstance(read, Unknown)
    assert read.why is why
    assert read.reason


def test_the_order_of_the_providers_does_not_matter() -> None:
    for table in (FOUND, DENIED, {name: testimonies for name, (testimonies, _) in OPEN.items()}):
        for testimonies in table.values():
            there, back = weigh_tx(testimonies), weigh_tx(testimonies[::-1])
            assert type(there) is type(back)


def test_providers_agree_on_a_block_only_with_equal_height_and_slot() -> None:
    def block(height: int, slot: int = 1000) -> Found[BlockSeen]:
        return Found(BlockSeen(height, slot, "b1" * 32, 1))

    assert weigh_block([ProviderAnswer("a", 12, block(10)), ProviderAnswer("b", 12, block(10))]) == block(10)
    for other in (block(11), block(10, 1001), NotFound(), Unknown("")):
        assert isinstance(
            weigh_block([ProviderAnswer("a", 12, block(10)), ProviderAnswer("b", 12, other)]), Unknown
        )


def moved(spent: int = 5, made: int = 3, ref: str = "aa#0") -> Found[Movement]:
    return Found(Movement({ref: {"lovelace": spent}}, {"bb#1": {"lovelace": made}}))


MOVED: dict[str, tuple[list[Read[Movement]], Read[Movement] | Why]] = {
    "one alone is taken at its word": ([moved()], moved()),
    "one alone denies": ([NO], NO),
    "two agree": ([moved(), moved()], moved()),
    "two deny": ([NO, NO], NO),
    "two of three agree, one says another amount": ([moved(), moved(), moved(spent=6)], moved()),
    "two of three agree, one denies": ([moved(), moved(), NO], moved()),
    "two of three agree, one cannot tell": ([moved(), MUTE, moved()], moved()),
    "two of three deny": ([moved(), NO, NO], NO),
    "another amount was spent": ([moved(), moved(spent=6)], Why.DISPUTE),
    "another amount was made": ([moved(), moved(made=4)], Why.DISPUTE),
    "another coin": ([moved(), moved(ref="cc#0")], Why.DISPUTE),
    "one denies": ([moved(), NO], Why.DISPUTE),
    "two against two": ([moved(), moved(), NO, NO], Why.DISPUTE),
    "one cannot tell": ([moved(), MUTE], Why.UNCLEAR),
    "nobody can tell": ([MUTE, MUTE], Why.UNCLEAR),
    "nobody": ([], Why.UNCLEAR),
}


@pytest.mark.parametrize("name", MOVED)
def test_providers_must_agree_on_what_a_transaction_moved(name: str) -> None:
    reads, expected = MOVED[name]
    for order in (reads, reads[::-1]):
        read = weigh_movement([ProviderAnswer(str(at), 12, one) for at, one in enumerate(order)])
        if isinstance(expected, Why):
            assert isinstance(read, Unknown)
            assert read.why is expected
            assert read.reason
        else:
            assert read == expected


def test_providers_that_list_different_transactions_are_in_dispute() -> None:
    one, two = AddressTx("aa" * 32, 5, 100), AddressTx("bb" * 32, 6, 120)
    whole = ProviderAnswer("a", 12, Found((one, two)))
    assert weigh_transactions([whole, ProviderAnswer("b", 12, Found((two, one)))]) == whole.read
    for other in ((one,), (), (one, AddressTx("bb" * 32, 7, 120))):
        read = weigh_transactions([whole, ProviderAnswer("b", 12, Found(other))])
        assert isinstance(read, Unknown)
        assert read.why is Why.DISPUTE


def utxo(number: int, lovelace: int = 5, block: str | None = "b1") -> ChainUtxo:
    return ChainUtxo(f"{number:02x}" * 32, 0, "addr", lovelace, {}, block, has_datum=False, has_script=False)


def refs(*numbers: int) -> frozenset[str]:
    return frozenset(f"{number:02x}" * 32 + "#0" for number in numbers)


UTXOS = {
    "one list": ([[utxo(1), utxo(2)]], [1, 2], ()),
    "alike, but for the block and the order": ([[utxo(1), utxo(2)], [utxo(2, block="b2"), utxo(1)]], [1, 2], ()),
    "one lists more": ([[utxo(1)], [utxo(1), utxo(2)]], [1], (2,)),
    "one lists nothing": ([[utxo(1)], []], [], (1,)),
    "another amount": ([[utxo(1)], [utxo(1, 6)]], [], (1,)),
    "two of three": ([[utxo(1)], [utxo(1)], []], [], (1,)),
}


@pytest.mark.parametrize("name", UTXOS)
def test_only_utxos_that_every_provider_lists_are_agreed(name: str) -> None:
    lists, agreed, doubtful = UTXOS[name]
    for order in (lists, lists[::-1]):
        read = weigh_utxos([ProviderAnswer(str(at), 12, Found(tuple(rows))) for at, rows in enumerate(order)])
        assert isinstance(read, Found)
        assert {row.tx_id[:2] for row in read.value.agreed} == {f"{number:02x}" for number in agreed}
        assert read.value.doubtful == refs(*doubtful)


def test_outputs_of_a_script_with_two_datums_are_doubtful_and_so_is_none_of_the_wallets() -> None:
    lists = [replace(utxo(1), datum="aa"), replace(utxo(1), datum="bb")]
    answers = [ProviderAnswer(str(at), 12, Found((row,))) for at, row in enumerate(lists)]
    of_the_wallet, of_a_script = weigh_utxos(answers), weigh_utxos(answers, lambda row: (row, row.datum))
    assert isinstance(of_the_wallet, Found)
    assert isinstance(of_a_script, Found)
    assert (of_the_wallet.value.doubtful, of_a_script.value.doubtful) == (frozenset(), refs(1))


def test_an_unreadable_utxo_list_leaves_the_utxos_unknown() -> None:
    one_of_two = weigh_utxos([ProviderAnswer("a", 12, Found((utxo(1),))), ProviderAnswer("b", 12, MUTE)])
    assert isinstance(one_of_two, Unknown)
    assert one_of_two.why is Why.NOT_YET
    for none in (weigh_utxos([]), weigh_utxos([ProviderAnswer("a", 12, MUTE), ProviderAnswer("b", 12, MUTE)])):
        assert isinstance(none, Unknown)
        assert none.why is Why.UNCLEAR


def silence(*at_ms: int) -> Silence | None:
    found = None
    for one in at_ms:
        found = missed(found, one)
    return found


SILENCES = {
    "none": ((), False),
    "often, and not long": ((0, 10, 20, 30, PATIENCE_MS - 1), False),
    "long, and twice": ((0, PATIENCE_MS), False),
    "long and often": ((0, 60_000, PATIENCE_MS), True),
    "long and often, at the latest each time": ((0, PATIENCE_MS, 2 * PATIENCE_MS), True),
    "twice at once, and long after": ((0, 0, PATIENCE_MS), True),
    "with a gap in which nobody asked": ((0, 60_000, 60_001 + GAP_MAX_MS), False),
    "with looks that take long": ((0, 130_000, 260_000), True),
    "with a clock that was set back": ((50_000, 100_000, 0, 60_000), False),
}


@pytest.mark.parametrize("name", SILENCES)
def test_a_silence_is_lasting_after_several_misses_over_a_long_time(name: str) -> None:
    times, expected = SILENCES[name]
    assert is_lasting(silence(*times)) is expected
