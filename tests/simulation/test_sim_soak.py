"""A short soak: the long one is run by hand (`scripts/evidence soak`, docs/evidence/soak.md)."""

from contextlib import closing
from pathlib import Path

import pytest
from simulation.soak import KEPT_ROWS, Size, Soak, Window, run_soak

from sim.judge import Signed


def test_a_fork_of_three_hours_violates_no_invariant() -> None:
    told = run_soak(Size(days=2, payments=150, beat_s=120, fork_hours=3))
    assert told["violations"] == []
    undone, lost, landed = told["fork"]
    assert undone > 200
    assert lost > landed > 0
    assert told["served"] > 0.8 * told["wanted"]
    assert told["calls_per_payment"] > 0


def test_a_window_drops_its_oldest_items() -> None:
    window = Window([0, 1, 2, 3])
    assert window.drop_below(2) == [(0, 0), (1, 1)]
    assert (len(window), window[2], window[-1], window[3:]) == (4, 2, 3, [3])
    with pytest.raises(KeyError):
        window[1]


def test_the_judge_archives_a_transaction_that_it_pruned_before_it_was_deep(tmp_path: Path) -> None:
    """After a fork, more transactions are signed before a block is deep than the judge keeps in memory."""
    soak = Soak(Size(days=2, payments=1, beat_s=120, fork_hours=0), tmp_path)
    soak.loop.close()
    with closing(soak.judge):
        soak._fund()
        oldest, other, *_ = (tx for block in soak.net.chain.blocks[1:] for tx in block.txs)
        for tx_id in (oldest.tx_id, *(f"tx{number}" for number in range(KEPT_ROWS))):
            soak.judge.signed[tx_id] = Signed(tx_id, "pay_1", "pay", "", b"", f"want {tx_id}", "", None, False)
        soak.judge.prune()
        assert oldest.tx_id not in soak.judge.signed
        for tx in (oldest, other):
            soak.judge.bury(tx)
        assert soak.judge._is_archived(oldest.tx_id)
        assert not soak.judge._is_archived(other.tx_id), "it is not ours"
