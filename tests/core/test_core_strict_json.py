"""Strict JSON: ambiguous text is refused, and no text takes long or crashes."""

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
def test_numbers_that_are_not_plain_integers_keep_their_text_and_are_not_amounts(text: str) -> None:
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
def test_ambiguous_or_malformed_json_is_refused(data: bytes | str) -> None:
    assert refused(data) == "invoice_invalid/json"


def test_a_surrogate_pair_is_read_as_one_character() -> None:
    assert loads('"\\ud83d\\ude00"') == "\U0001f600"


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    text = json.dumps(["[" * 100 + '\\"{' * 100])
    assert loads(text) == json.loads(text)
    assert loads("[" * 16 + "]" * 16) is not None
    assert loads("[[]," * 15 + "[]" + "]" * 15) is not None


def test_the_size_limit_counts_utf_8_bytes() -> None:
    assert loads('"' + "\u20ac" * 21_844 + '"') is not None
    assert refused('"' + "\u20ac" * 21_845 + '"') == "body_too_big"
    assert refused(b" " * 65_537) == "body_too_big"
    with pytest.raises(Refused):
        loads("[1]", max_bytes=2)
    with pytest.raises(Refused):
        loads("[[1]]", max_depth=1)


@pytest.mark.parametrize("unit", ['"', '\\"', '"\\', "[", "{", "\\", '["', "]", '{"a":'])
def test_no_text_of_64_kib_takes_a_second(unit: str) -> None:
    text = '"' + unit * (65_000 // len(unit))
    started = time.process_time()
    assert refused(text) == "invoice_invalid/json"
    assert time.process_time() - started < 1


@given(st.binary(max_size=100) | st.text(max_size=60))
def test_any_input_is_read_as_by_the_json_module_or_refused(data: bytes | str) -> None:
    try:
        value = loads(data)
    except Refused:
        return
    text = data if isinstance(data, str) else data.decode()
    assert value == json.loads(text, parse_float=JsonNumber)


def test_escaped_line_ends_and_tabs_in_a_string_are_accepted() -> None:
    assert loads('"a\\r\\n\\tb"') == "a\r\n\tb"


def test_json_is_written_as_compact_ascii_in_the_order_it_was_read() -> None:
    text = '{"b":[1.50,-2E+3,12345678901234567890,true,false,null],"a":{"d":"caf\\u00e9 \\"\\n","c":[]}}'
    assert dumps(loads(text)) == text
    assert dumps(loads(' {"b" : 1 ,\n"a":[ {"d":1,"c":2} ]} '), sort_keys=True) == '{"a":[{"c":2,"d":1}],"b":1}'


@given(st.binary(max_size=100) | st.text(max_size=60))
def test_written_json_reads_back_to_the_same_value(data: bytes | str) -> None:
    try:
        value = loads(data)
    except Refused:
        return
    for sort_keys in (False, True):
        text = dumps(value, sort_keys=sort_keys)
        assert text.isascii()
        assert loads(text) == value


def test_values_side_by_side_do_not_count_as_nesting() -> None:
    assert loads("[" + ",".join(["[]"] * 50) + "]") == [[]] * 50
    assert loads('["' + "[" * 50 + '"]') == ["[" * 50]


@pytest.mark.parametrize("text", ['"' + "a" * 65_534 + '"', '"' + "\u00e9" * 32_767 + '"'])
def test_a_body_of_64_kib_is_read_and_one_byte_more_is_refused(text: str) -> None:
    for data in (text, text.encode()):
        assert loads(data) == text[1:-1]
    for more in (text + " ", (text + " ").encode()):
        assert refused(more) == "body_too_big"


def test_closed_brackets_do_not_hide_nesting_that_is_too_deep() -> None:
    closed = "[" + "[]," * 20
    assert loads(closed + "[" * 15 + "]" * 15 + "]") is not None
    assert refused(closed + "[" * 16 + "]" * 16 + "]") == "invoice_invalid/json"


def test_a_refusal_names_the_duplicate_key() -> None:
    with pytest.raises(Refused, match="the key 'b' is given twice"):
        loads('{"a": 1, "b": 2, "b": 3}')


def test_a_duplicate_key_among_very_many_is_found_quickly() -> None:
    """In processor time: comparing all pairs took 7 s for these keys, and 100 s for four times as many."""
    keys = ",".join(f'"{number}":0' for number in range(20_000))
    begun_s = time.process_time()
    with pytest.raises(Refused, match="the key '19999' is given twice"):
        loads(f'{{{keys},"19999":0}}', max_bytes=10**6)
    assert time.process_time() - begun_s < 1
