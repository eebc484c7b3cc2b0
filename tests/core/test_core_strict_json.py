"""Strict JSON: what two readers could read differently is refused, and no text takes long or crashes."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payagent.core.money import parse_units
from payagent.core.problems import Refused
from payagent.core.strict_json import JsonNumber, dumps, loads


def refused(data: bytes | str) -> str:
    with pytest.raises(Refused) as caught:
        loads(data)
    return caught.value.name


SAFE_TEXT = st.text(st.characters(min_codepoint=0x20, exclude_categories=["Cs"]), max_size=10)
SAFE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | SAFE_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(SAFE_TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(SAFE, st.booleans(), st.booleans())
def test_plain_values_come_through_unchanged(value: object, ascii_only: bool, indented: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=2 if indented else None)
    assert loads(text) == value
    assert loads(text.encode()) == value


@pytest.mark.parametrize("text", ["1.0", "1e3", "-0.5", "1E999999", "9007199254740993.0", "1" + "0" * 4300])
def test_numbers_that_are_no_plain_integers_keep_their_text_and_are_no_amount(text: str) -> None:
    value = loads(text)
    assert value == JsonNumber(text)
    with pytest.raises(Refused) as caught:
        parse_units(value)
    assert caught.value.name == "invoice_invalid/amount"


def test_integers_beyond_any_float_are_exact() -> None:
    assert loads("9007199254740993") == 9007199254740993
    assert loads("9" * 4300) == int("9" * 4300)


@pytest.mark.parametrize(
    "data",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '{"x":[{"a":1,"b":2,"a":3}]}',
        '"\\u0000"',
        '"\\u001f"',
        '"a\nb"',
        '"\\ud800"',
        '"\\udc00\\ud800"',
        '{"\\ud800":1}',
        '{"\\u0007":1}',
        '"\ud800"',
        "\ufeff{}",
        b"\xef\xbb\xbf{}",
        b'"\xff"',
        b'"\xed\xa0\x80"',
        "{}".encode("utf-16"),
        "{}".encode("utf-16-be"),
        "{}".encode("utf-32"),
        "",
        " ",
        "{",
        "{} {}",
        "[1,]",
        "{'a':1}",
        "01",
        "1_0",
        "+1",
        "\uff11",
        "\u00a01",
        "nul",
        "[" * 17 + "]" * 17,
        '{"a":' * 17 + "1" + "}" * 17,
        "[" * 60_000,
    ],
)
def test_refused_texts(data: bytes | str) -> None:
    assert refused(data) == "invoice_invalid/json"


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert loads('"\\ud83d\\ude00"') == "\U0001f600"


def test_brackets_in_strings_are_not_nesting() -> None:
    text = json.dumps(["[" * 100 + '\\"{' * 100])
    assert loads(text) == json.loads(text)
    assert loads("[" * 16 + "]" * 16) is not None
    assert loads("[[]," * 15 + "[]" + "]" * 15) is not None


def test_the_size_is_counted_in_bytes_of_utf_8() -> None:
    assert loads('"' + "\u20ac" * 21_844 + '"') is not None
    assert refused('"' + "\u20ac" * 21_845 + '"') == "body_too_big"
    assert refused(b" " * 65_537) == "body_too_big"
    with pytest.raises(Refused):
        loads("[1]", max_bytes=2)
    with pytest.raises(Refused):
        loads("[[1]]", max_depth=1)


@pytest.mark.parametrize("unit", ['"', '\\"', '"\\', "[", "{", "\\", '["', "]", '{"a":'])
def test_no_text_of_64_kib_takes_long(unit: str) -> None:
    text = '"' + unit * (65_000 // len(unit))
    started = time.process_time()
    assert refused(text) == "invoice_invalid/json"
    assert time.process_time() - started < 1


@given(st.binary(max_size=100) | st.text(max_size=60))
def test_nothing_but_refused_is_raised(data: bytes | str) -> None:
    try:
        value = loads(data)
    except Refused:
        return
    text = data if isinstance(data, str) else data.decode()
    assert value == json.loads(text, parse_float=JsonNumber)


def test_line_ends_and_tabs_in_a_string_are_text() -> None:
    assert loads('"a\\r\\n\\tb"') == "a\r\n\tb"


def test_what_is_written_is_compact_ascii_in_the_order_that_was_read() -> None:
    text = '{"b":[1.50,-2E+3,12345678901234567890,true,false,null],"a":{"d":"caf\\u00e9 \\"\\n","c":[]}}'
    assert dumps(loads(text)) == text
    assert dumps(loads(' {"b" : 1 ,\n"a":[ {"d":1,"c":2} ]} '), sort_keys=True) == '{"a":[{"c":2,"d":1}],"b":1}'


@given(st.binary(max_size=100) | st.text(max_size=60))
def test_what_was_read_is_written_with_the_same_value(data: bytes | str) -> None:
    try:
        value = loads(data)
    except Refused:
        return
    for sort_keys in (False, True):
        text = dumps(value, sort_keys=sort_keys)
        assert text.isascii()
        assert loads(text) == value


def test_what_stands_side_by_side_is_not_deep() -> None:
    assert loads("[" + ",".join(["[]"] * 50) + "]") == [[]] * 50
    assert loads('["' + "[" * 50 + '"]') == ["[" * 50]


@pytest.mark.parametrize("text", ['"' + "a" * 65_534 + '"', '"' + "\u00e9" * 32_767 + '"'])
def test_a_body_of_exactly_64_kib_is_read_and_none_of_a_byte_more(text: str) -> None:
    for data in (text, text.encode()):
        assert loads(data) == text[1:-1]
    for more in (text + " ", (text + " ").encode()):
        assert refused(more) == "body_too_big"


def test_what_was_closed_before_does_not_hide_how_deep_it_goes() -> None:
    closed = "[" + "[]," * 20
    assert loads(closed + "[" * 15 + "]" * 15 + "]") is not None
    assert refused(closed + "[" * 16 + "]" * 16 + "]") == "invoice_invalid/json"


def test_the_key_that_is_given_twice_is_told() -> None:
    with pytest.raises(Refused, match="the key 'b' is given twice"):
        loads('{"a": 1, "b": 2, "b": 3}')


def test_a_key_that_is_given_twice_among_very_many_is_found_at_once() -> None:
    """By the processor's time: comparing each with each took 7 s for these, and 100 for four times as many."""
    keys = ",".join(f'"{number}":0' for number in range(20_000))
    begun_s = time.process_time()
    with pytest.raises(Refused, match="the key '19999' is given twice"):
        loads(f'{{{keys},"19999":0}}', max_bytes=10**6)
    assert time.process_time() - begun_s < 1
