"""The devnet's chain: mempool, blocks, rollbacks and forks, as a wallet or a provider sees them."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from ledger_check.scalus import Scalus, needs_scalus
from ledger_check.txkit import Draft, Key, Out, OutRef, asset

from payagent.devnet.ledger import Chain, DevnetBlock, LedgerError, Params, TxOut
from sim.forks import mint_fork_block, return_deposit

START = 1_000
ALICE, BOB = Key.extended(1), Key.extended(2)
A, B = ALICE.address(), BOB.address()
ADA = 1_000_000
ALL_SPENT = "All inputs are spent. Transaction has probably already been included"


@pytest.fixture
def chain() -> Chain:
    return Chain(Params(), network_id=0, start_slot=START)


def fund(chain: Chain, address: bytes, *lovelace: int) -> list[OutRef]:
    """Faucet outputs in a block of their own."""
    refs = [(chain.faucet(address, amount), 0) for amount in lovelace]
    chain.make_block()
    return refs


def pay(
    chain: Chain,
    refs: Sequence[OutRef],
    lovelace: int,
    *,
    ttl: int | None = START + 10_000,
    parents: dict[OutRef, Out] | None = None,
) -> Draft:
    """Alice spends `refs` (of the tip, or of `parents`): `lovelace` to Bob, the rest back to her."""
    utxos = dict(parents or {})
    for ref in refs:
        if ref not in utxos and (out := chain.utxos.get(ref)) is not None:
            utxos[ref] = Out(out.address, out.lovelace, out.assets)
    return Draft(tuple(refs), (Out(B, lovelace), Out(A, 0)), (ALICE,), ttl=ttl).balanced(utxos)


def refusal(call: Callable[[], object]) -> LedgerError:
    with pytest.raises(LedgerError) as caught:
        call()
    return caught.value


def lovelace_at(chain: Chain, address: bytes) -> list[int]:
    return [out.lovelace for _, out in chain.utxos_at(address)]


# --- faucet, blocks, look-ups -------------------------------------------------------------------------------


def test_genesis_is_an_empty_block_at_the_start_slot(chain: Chain) -> None:
    assert (chain.tip.height, chain.tip.slot, chain.tip.txs) == (0, START, ())


def test_faucet_funds_arrive_in_the_next_block_and_can_be_spent(chain: Chain) -> None:
    token = asset(1)
    tx_id = chain.faucet(A, 5 * ADA, {token: 7})
    assert chain.utxos_at(A) == []
    waiting = chain.tx(tx_id)
    assert waiting is not None
    assert waiting[1] is None
    block = chain.make_block()
    found = chain.tx(tx_id)
    assert found is not None
    tx, home = found
    assert home is block
    assert tx.outputs == (TxOut(A, 5 * ADA, {token: 7}),)
    assert chain.utxos_at(A) == [((tx_id, 0), TxOut(A, 5 * ADA, {token: 7}))]
    assert chain.submit(pay(chain, [(tx_id, 0)], 2 * ADA).tx())


def test_each_faucet_call_makes_a_different_transaction(chain: Chain) -> None:
    assert chain.faucet(A, 5 * ADA) != chain.faucet(A, 5 * ADA)


@pytest.mark.parametrize(
    ("address", "lovelace", "rule"),
    [
        (A, 900_000, "BabbageOutputTooSmallUTxO"),
        (ALICE.address(1), 5 * ADA, "WrongNetwork"),
        (A[:-1], 5 * ADA, "DecoderErrorDeserialiseFailure"),
    ],
)
def test_the_faucet_refuses_outputs_that_break_the_ledger_rules(
    chain: Chain, address: bytes, lovelace: int, rule: str
) -> None:
    assert refusal(lambda: chain.faucet(address, lovelace)).rule == rule
    assert not chain.mempool


def test_a_payment_moves_from_mempool_to_block(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    draft = pay(chain, [ref], 10 * ADA)
    assert chain.submit(draft.tx()) == draft.tx_id
    assert list(chain.mempool) == [draft.tx_id]
    assert (chain.utxos_at(B), chain.spender.get(ref)) == ([], None)
    chain.tick(START + 20)
    block = chain.make_block()
    assert (block.slot, block.height, block.prev_hash) == (START + 20, 2, chain.blocks[1].hash)
    assert not chain.mempool
    assert lovelace_at(chain, B) == [10 * ADA]
    assert lovelace_at(chain, A) == [90 * ADA - draft.fee]
    assert chain.spender.get(ref) == draft.tx_id
    assert chain.txs_at(A) == (ref[0], draft.tx_id)
    assert chain.txs_at(B) == (draft.tx_id,)
    assert chain.block(block.hash) is chain.block(2) is block
    assert chain.block("00" * 32) is chain.block(3) is chain.block(-1) is None


def test_unspent_outputs_are_listed_oldest_first(chain: Chain) -> None:
    fund(chain, A, 3 * ADA, 9 * ADA)
    fund(chain, A, 5 * ADA)
    assert lovelace_at(chain, A) == [3 * ADA, 9 * ADA, 5 * ADA]


def test_the_same_calls_make_the_same_blocks() -> None:
    def play() -> list[DevnetBlock]:
        chain = Chain(Params(), 0, START)
        (ref,) = fund(chain, A, 100 * ADA)
        chain.submit(pay(chain, [ref], 10 * ADA).tx())
        chain.make_block()
        chain.rollback(1)
        chain.make_block()
        return chain.blocks

    assert play() == play()


# --- the mempool --------------------------------------------------------------------------------------------


def test_chained_transactions_are_accepted_in_order_only(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    parent = pay(chain, [ref], 10 * ADA)
    change = (parent.tx_id, 1)
    child = pay(chain, [change], 20 * ADA, parents={change: parent.outputs[1]})
    assert refusal(lambda: chain.submit(child.tx())).rule == "ConwayMempoolFailure"
    chain.submit(parent.tx())
    chain.submit(child.tx())
    assert [tx.tx_id for tx in chain.make_block().txs] == [parent.tx_id, child.tx_id]
    assert lovelace_at(chain, B) == [10 * ADA, 20 * ADA]


def test_submitting_the_same_transaction_again_is_refused_as_by_a_node(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    raw = pay(chain, [ref], 10 * ADA).tx()
    chain.submit(raw)
    for _ in ("in the mempool", "in a block"):
        error = refusal(lambda: chain.submit(raw))
        assert (error.rule, error.detail) == ("ConwayMempoolFailure", ALL_SPENT)
        chain.make_block()
    assert lovelace_at(chain, B) == [10 * ADA]


def test_a_double_spend_is_refused_before_and_after_the_block(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    first, second = pay(chain, [ref], 10 * ADA), pay(chain, [ref], 11 * ADA)
    chain.submit(first.tx())
    assert refusal(lambda: chain.submit(second.tx())).rule == "ConwayMempoolFailure"
    chain.make_block()
    assert refusal(lambda: chain.submit(second.tx())).rule == "ConwayMempoolFailure"
    assert list(chain.tip.txs[0].inputs) == [ref]


def test_a_transaction_with_some_inputs_spent_is_refused_with_both_rules(chain: Chain) -> None:
    one, two = fund(chain, A, 50 * ADA, 50 * ADA)
    both = pay(chain, [one, two], 70 * ADA)
    chain.submit(pay(chain, [one], 10 * ADA).tx())
    error = refusal(lambda: chain.submit(both.tx()))
    assert error.rule == "BadInputsUTxO"
    assert f"{one[0]}#0" in error.detail
    assert [rule for rule, _ in error.failures] == ["BadInputsUTxO", "ValueNotConservedUTxO"]


def test_a_transaction_expires_at_its_ttl_and_its_child_with_it(chain: Chain) -> None:
    ref, other = fund(chain, A, 100 * ADA, 100 * ADA)
    parent = pay(chain, [ref], 10 * ADA, ttl=START + 5)
    change = (parent.tx_id, 1)
    child = pay(chain, [change], 20 * ADA, ttl=None, parents={change: parent.outputs[1]})
    lasting = pay(chain, [other], 30 * ADA)
    for draft in (parent, child, lasting):
        chain.submit(draft.tx())
    chain.tick(START + 4)
    assert len(chain.mempool) == 3
    chain.tick(START + 5)
    assert list(chain.mempool) == [lasting.tx_id]
    assert refusal(lambda: chain.submit(parent.tx())).rule == "OutsideValidityIntervalUTxO"


def test_the_clock_never_goes_back(chain: Chain) -> None:
    chain.tick(START + 50)
    chain.tick(START + 20)
    assert chain.slot == START + 50


def test_a_block_takes_the_oldest_transactions_up_to_its_maximum_size(chain: Chain) -> None:
    refs = fund(chain, A, *[100 * ADA] * 8)
    drafts = []
    for ref in refs:
        draft = pay(chain, [ref], 10 * ADA)
        padding = b"\xa1\x00\x98\xea" + (b"\x58\x40" + b"\x00" * 64) * 234
        utxos = {ref: Out(A, 100 * ADA)}
        drafts.append(draft.with_(aux=padding).balanced(utxos))
        chain.submit(drafts[-1].tx())
    sizes = [tx.size_bytes for tx in chain.mempool.values()]
    assert sum(sizes[:5]) <= 90_112 < sum(sizes[:6])
    assert [tx.tx_id for tx in chain.make_block().txs] == [draft.tx_id for draft in drafts[:5]]
    assert [tx.tx_id for tx in chain.make_block().txs] == [draft.tx_id for draft in drafts[5:]]


# --- rollbacks and forks ------------------------------------------------------------------------------------


def test_a_rollback_removes_a_payment_until_it_is_submitted_again(chain: Chain) -> None:
    old, mid, new = fund(chain, A, 7 * ADA, 100 * ADA, 3 * ADA)
    draft = pay(chain, [mid], 10 * ADA)
    chain.submit(draft.tx())
    chain.tick(START + 9)
    lost = chain.make_block()
    assert chain.rollback(1) == (lost,)
    assert chain.slot == START + 9
    assert chain.tx(draft.tx_id) is None
    assert not chain.mempool
    assert [ref for ref, _ in chain.utxos_at(A)] == [old, mid, new]
    assert (chain.utxos_at(B), chain.txs_at(B), chain.spender.get(mid)) == ([], (), None)
    assert chain.block(lost.hash) is None
    chain.submit(draft.tx())
    again = chain.make_block()
    assert [tx.tx_id for tx in again.txs] == [tx.tx_id for tx in lost.txs]
    assert again.hash != lost.hash


def test_readd_puts_rolled_back_transactions_first_in_the_mempool(chain: Chain) -> None:
    one, two = fund(chain, A, 100 * ADA, 100 * ADA)
    first, second = pay(chain, [one], 10 * ADA), pay(chain, [two], 20 * ADA)
    chain.submit(first.tx())
    chain.make_block()
    chain.submit(second.tx())
    chain.rollback(1, readd=True)
    assert list(chain.mempool) == [first.tx_id, second.tx_id]


def test_a_rollback_drops_transactions_that_depend_on_it(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    parent = pay(chain, [ref], 10 * ADA)
    chain.submit(parent.tx())
    chain.make_block()
    chain.submit(pay(chain, [(parent.tx_id, 1)], 20 * ADA).tx())
    chain.rollback(1)
    assert not chain.mempool


def test_a_rolled_back_deposit_can_return_to_the_mempool(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    ((deposit,),) = [block.txs for block in chain.rollback(1)]
    assert chain.utxos.get(ref) is None
    return_deposit(chain, deposit)
    return_deposit(chain, deposit)
    assert list(chain.mempool) == [deposit.tx_id]
    chain.make_block()
    assert chain.utxos.get(ref) is not None
    return_deposit(chain, deposit)  # it is in a block
    assert not chain.mempool


def test_rolling_back_the_faucet_removes_its_funds(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    draft = pay(chain, [ref], 10 * ADA)
    chain.submit(draft.tx())
    chain.make_block()
    undone = chain.rollback(2)
    assert [block.height for block in undone] == [1, 2]
    assert (chain.utxos_at(A), chain.tip.height) == ([], 0)
    raws = [tx.raw for block in undone for tx in block.txs]
    mint_fork_block(chain, raws, None)
    assert lovelace_at(chain, B) == [10 * ADA]
    assert refusal(lambda: mint_fork_block(chain, raws[:1], None)).rule == "BadInputsUTxO"


@pytest.mark.parametrize("depth", [-1, 2])
def test_nothing_is_rolled_back_below_genesis(chain: Chain, depth: int) -> None:
    fund(chain, A, 100 * ADA)
    with pytest.raises(ValueError, match="cannot be undone"):
        chain.rollback(depth)
    assert chain.tip.height == 1


def test_an_expired_transaction_can_still_land_on_a_fork_with_older_slots(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    late = pay(chain, [ref], 10 * ADA, ttl=START + 5)
    chain.tick(START + 60)
    rival = pay(chain, [ref], 11 * ADA)
    chain.submit(rival.tx())
    assert refusal(lambda: mint_fork_block(chain, [late.tx()], None)).rule == "OutsideValidityIntervalUTxO"
    assert (chain.tip.height, list(chain.mempool)) == (1, [rival.tx_id])
    block = mint_fork_block(chain, [late.tx()], START + 4)
    assert (block.slot, chain.slot) == (START + 4, START + 60)
    assert lovelace_at(chain, B) == [10 * ADA]
    assert not chain.mempool


def test_a_fork_block_is_all_or_nothing(chain: Chain) -> None:
    (ref,) = fund(chain, A, 100 * ADA)
    good, rival = pay(chain, [ref], 10 * ADA), pay(chain, [ref], 11 * ADA)
    before = (chain.tip, chain.utxos_at(A))
    assert refusal(lambda: mint_fork_block(chain, [good.tx(), rival.tx()], None)).rule == "BadInputsUTxO"
    assert (chain.tip, chain.utxos_at(A)) == before


@pytest.mark.parametrize("slot", [START - 1, START + 1])
def test_a_fork_block_must_lie_between_the_tip_and_the_clock(chain: Chain, slot: int) -> None:
    with pytest.raises(ValueError, match="is not within"):
        mint_fork_block(chain, [], slot)


# --- the whole against a naive replay -----------------------------------------------------------------------


def replay(blocks: Sequence[DevnetBlock]) -> tuple[dict[OutRef, TxOut], dict[OutRef, str], dict[bytes, list[str]]]:
    """Unspent outputs in order of creation, spenders and histories, from the blocks alone."""
    outputs: dict[OutRef, TxOut] = {}
    spender: dict[OutRef, str] = {}
    history: dict[bytes, list[str]] = {}
    for tx in (tx for block in blocks for tx in block.txs):
        touched = [outputs[ref].address for ref in tx.inputs] + [out.address for out in tx.outputs]
        for address in set(touched):
            history.setdefault(address, []).append(tx.tx_id)
        spender.update(dict.fromkeys(tx.inputs, tx.tx_id))
        outputs.update({(tx.tx_id, index): out for index, out in enumerate(tx.outputs)})
    return {ref: out for ref, out in outputs.items() if ref not in spender}, spender, history


@pytest.mark.parametrize("seed", range(8))
def test_after_any_history_the_indexes_equal_a_replay_of_the_blocks(seed: int) -> None:
    dice = random.Random(seed)
    chain = Chain(Params(), 0, START)
    fund(chain, A, *[50 * ADA] * 6)
    seen: set[OutRef] = set()
    refused: set[str] = set()
    rollbacks, most_paid = 0, 0
    for _ in range(120):
        match dice.choice(["pay", "pay", "pay", "block", "tick", "rollback", "faucet"]):
            case "pay" if spendable := [ref for ref, out in chain.utxos_at(A) if out.lovelace > 5 * ADA]:
                draft = pay(chain, dice.sample(spendable, min(2, len(spendable))), 2 * ADA, ttl=chain.slot + 30)
                try:
                    chain.submit(draft.tx())
                except LedgerError as error:
                    refused.add(error.rule)
            case "block":
                chain.make_block()
            case "tick":
                chain.tick(chain.slot + dice.randrange(20))
            case "rollback" if chain.tip.height > 2:
                chain.rollback(dice.randrange(min(4, chain.tip.height)), readd=dice.random() < 0.5)
                rollbacks += 1
            case "faucet":
                chain.faucet(A, 50 * ADA)
        unspent, spender, history = replay(chain.blocks)
        seen |= {*unspent, *spender}
        assert [*chain.utxos_at(A)] == [(ref, out) for ref, out in unspent.items() if out.address == A]
        assert [*chain.utxos_at(B)] == [(ref, out) for ref, out in unspent.items() if out.address == B]
        assert {ref: chain.spender.get(ref) for ref in seen} == {ref: spender.get(ref) for ref in seen}
        assert {ref: chain.utxos.get(ref) for ref in seen} == {ref: unspent.get(ref) for ref in seen}
        for address in (A, B):
            assert list(chain.txs_at(address)) == history.get(address, [])
        made = sum(tx.outputs[0].lovelace for block in chain.blocks for tx in block.txs if not tx.inputs)
        fees = sum(tx.fee_lovelace for block in chain.blocks for tx in block.txs)
        assert sum(out.lovelace for out in unspent.values()) == made - fees
        most_paid = max(most_paid, len(chain.txs_at(B)))
    assert refused <= {"ConwayMempoolFailure", "BadInputsUTxO"}
    assert rollbacks > 2
    assert most_paid > 2


# --- speed, purity, and the independent ledger on a chain ---------------------------------------------------


def _chain_of_payments(chain: Chain, start: OutRef, count: int) -> Iterator[Draft]:
    known = {start: Out(A, 900 * ADA)}
    ref = start
    for number in range(count):
        draft = pay(chain, [ref], ADA + number, parents=known)
        yield draft
        ref = (draft.tx_id, 1)
        known = {ref: draft.outputs[1]}


@needs_scalus
def test_scalus_agrees_on_a_long_chain_of_payments(chain: Chain) -> None:
    (start,) = fund(chain, A, 900 * ADA)
    with Scalus() as judge:
        judge.open(dict(chain.utxos_at(A)), chain.slot, 0)
        for draft in _chain_of_payments(chain, start, 100):
            assert judge.submit(draft.tx()) is None
            assert chain.submit(draft.tx()) == draft.tx_id
        assert judge.submit(draft.tx()) is not None
        assert refusal(lambda: chain.submit(draft.tx())).rule == "ConwayMempoolFailure"
        judge.tick(START + 10_000)
        chain.tick(START + 10_000)
        late = pay(chain, [(draft.tx_id, 1)], ADA, parents={(draft.tx_id, 1): draft.outputs[1]})
        assert "validity interval" in str(judge.submit(late.tx()))
        assert not chain.mempool


def test_300_payments_on_10_000_outputs_take_less_than_1_5_s(chain: Chain) -> None:
    for _ in range(10_000):
        chain.faucet(A, 20 * ADA)
    while chain.mempool:
        chain.make_block()
    refs = [ref for ref, _ in chain.utxos_at(A)]
    raws = [pay(chain, [ref], 2 * ADA).tx() for ref in refs[::33][:300]]
    began = time.process_time()
    for raw in raws:
        chain.submit(raw)
    while chain.mempool:
        chain.make_block()
    paid = len(chain.utxos_at(B))
    chain.rollback(1)
    spent_s = time.process_time() - began
    assert (paid, chain.utxos_at(B)) == (300, [])
    assert spent_s < 1.5, f"{spent_s:.2f} s"


def test_the_ledger_imports_nothing_else_of_payagent() -> None:
    code = "import sys, payagent.devnet.ledger as _; print('\\n'.join(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    ours = {name for name in modules if name.startswith("payagent")}
    rooms = {"address", "cbor", "channel_script", "decode", "ledger", "ledger_types", "plutus_data", "rules"}
    rooms |= {"script_rules"}
    assert ours == {"payagent", "payagent.devnet", *(f"payagent.devnet.{room}" for room in rooms)}
    assert not {"pycardano", "cbor2", "socket", "sqlite3", "random"} & set(modules)
