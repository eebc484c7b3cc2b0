"""The countable costs of a payment may not exceed the baseline by more than 5 percent."""

import shutil
from pathlib import Path

import pytest
from counts import counting

same_python = pytest.mark.skipif(
    counting.baseline_python() != counting.PYTHON, reason="the baseline is of another version of Python"
)


def told(counts: counting.Counts) -> str:
    words = "; ".join(f"{name}: {what}" for name, what in counting.grown(counts, counting.baseline()).items())
    return words and f"{words} (tests/counts/counting.py --write, if that is meant)"


async def test_a_payment_needs_no_more_statements_commits_or_calls_than_the_baseline(tmp_path: Path) -> None:
    counts = await counting.least_of_the_agent(tmp_path)
    assert told(counts) == ""
    assert counts["provider calls of one payment more"] <= 12
    assert counts["provider calls a minute when idle"] <= 6


@same_python
def test_memory_to_build_a_payment_does_not_grow_with_the_number_of_utxos() -> None:
    counts = counting.memory_of_building()
    assert told(counts) == ""
    assert max(counts.values()) < 1.1 * min(counts.values())


@same_python
@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_building_a_payment_needs_no_more_instructions_than_the_baseline() -> None:
    assert told(counting.instructions_of_building()) == ""


def test_a_count_more_than_five_percent_above_the_baseline_is_reported() -> None:
    before = {"statements": 100.0, "calls": 3.0}
    assert counting.grown({"statements": 105.0, "calls": 3.0}, before) == {}
    assert counting.grown({"statements": 106.0, "calls": 3.0}, before).keys() == {"statements"}
    assert counting.grown({"new": 1.0}, before).keys() == {"new"}


async def test_ten_extra_statements_per_payment_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten statements are six percent; the counter watches the connection that pays."""
    from payagent.store import executor

    add = executor.open_payment

    def with_more(unit, **values):  # type: ignore[no-untyped-def]
        for _ in range(10):
            unit.conn.execute("SELECT 1 FROM payments LIMIT 1")
        add(unit, **values)

    monkeypatch.setattr(executor, "open_payment", with_more)
    assert "statements of a payment, asked for to sent" in told(await counting.counted(tmp_path, is_guarded=False))
