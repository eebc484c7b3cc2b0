"""A table is fitted to the terminal's width: texts are shortened, columns dropped, numbers and ids kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from payagent.cli.table_fit import GAP, LEAST, Column, fit, shorten

ADDRESS = (
    "addr_test1qpvqfwk79ea9z8mrjur02x8kvmws0jyllu2rgpllyqx2rn5k3tfdjhp9jmdngf6qdgw3gt2mr8eq820a5232dpfqw6vsr3v3v8"
)


def width_of(columns: list[Column]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def test_a_table_with_room_is_left_as_it_is() -> None:
    columns = [Column("id", [ADDRESS], is_whole=False), Column("fee", ["1"], is_whole=True, rank=0)]
    assert fit(columns, width_of(columns)) == columns


def test_texts_are_shortened_before_a_column_is_dropped() -> None:
    columns = [Column("to", [ADDRESS], is_whole=False), Column("fee", ["1 ADA"], is_whole=True, rank=0)]
    (to, fee) = fit(columns, 40)
    assert (width_of([to, fee]), fee.cells) == (40, ["1 ADA"])
    assert to.cells == [f"{ADDRESS[:16]}…{ADDRESS[-16:]}"]


def test_columns_are_dropped_by_rank_and_the_rest_gets_the_room() -> None:
    columns = [
        Column("id", ["pay_0123456789"], is_whole=True),
        Column("call", ["POST /chat"], is_whole=False),
        Column("fee", ["0.17 ADA"], is_whole=True, rank=1),
        Column("created", ["2026-01-01"], is_whole=True, rank=0),
    ]
    assert [column.name for column in fit(columns, 36)] == ["id", "call", "fee"]
    assert fit(columns, 30) == columns[:2]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("short", "short"), ("0123456789", "0123…6789"), ("POST /a/long/path", "POST /a/…")],
)
def test_a_word_is_shortened_in_its_middle_and_a_sentence_at_its_end(text: str, shown: str) -> None:
    assert shorten(text, 9) == shown


@given(
    some.lists(
        some.tuples(some.text("ab ", max_size=60), some.booleans(), some.booleans()), min_size=1, max_size=9
    ),
    some.integers(20, 120),
)
def test_a_fitted_table_is_no_wider_than_it_must_be(cells: list[tuple[str, bool, bool]], width: int) -> None:
    columns = [
        Column(f"c{number}", [text], is_whole, number if is_droppable else None)
        for number, (text, is_whole, is_droppable) in enumerate(cells)
    ]
    fitted = fit(columns, width)
    kept = [column for column in columns if column.rank is None]
    least = sum(column.width if column.is_whole else min(column.width, LEAST) for column in kept)
    assert width_of(fitted) <= max(width, least + GAP * (len(kept) - 1))
    texts = {column.name: column.cells for column in columns}
    assert [column.cells for column in fitted if column.is_whole] == [
        texts[column.name] for column in fitted if column.is_whole
    ]
