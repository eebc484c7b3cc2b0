"""Answers to a submission as providers word them, and the class of each.

The wordings are those of cardano-node eras Shelley to Dijkstra, Blockfrost, Ogmios, Dolos and Yaci Store; ids
and amounts are made up.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.submit_answers import ALL_SPENT, ANSWERS, BAD_INPUTS, DIGITS, INFINITE, NO_VALUE, TX, K, as_object, raw

from payagent.chain.provider import SubmitAnswer, SubmitKind
from payagent.chain.submit_answers import RawAnswer, TransportError, classify_submit


@pytest.mark.parametrize(("answer", "kind"), ANSWERS.values(), ids=ANSWERS.keys())
def test_each_recorded_submission_answer_gets_its_class(answer: RawAnswer, kind: SubmitKind) -> None:
    classified = classify_submit(answer, TX)
    assert classified.kind is kind, classified.detail
    assert classified.detail.isprintable()
    assert len(classified.detail) < 300


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        (
            RawAnswer(error=TransportError.CONNECT, body_sent=False),
            "no answer: connect before the transaction was sent",
        ),
        (RawAnswer(error=TransportError.RESET), "no answer: reset after the transaction may have been sent"),
        (RawAnswer(), "no answer: nothing came back after the transaction may have been sent"),
        (as_object(BAD_INPUTS, NO_VALUE), "http 400: BadInputsUTxO, ValueNotConservedUTxO"),
        (as_object("FeeTooSmallUTxO", "OutputTooSmallUTxO"), "http 400: FeeTooSmallUTxO, OutputTooSmallUTxO"),
        (raw(500, b"\x00down\n\xff" + b"a" * 300), f"http 500: down  {'a' * 194}"),
        (raw(503), "http 503: empty body"),
    ],
)
def test_the_detail_tells_the_operator_what_came_back(answer: RawAnswer, detail: str) -> None:
    assert classify_submit(answer, TX).detail == detail


def test_the_recorded_answers_cover_every_class() -> None:
    assert len(ANSWERS) >= 60
    assert {kind for _, kind in ANSWERS.values()} == set(SubmitKind)


@pytest.mark.parametrize("tx_id", [DIGITS, INFINITE])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_transaction_id_that_looks_like_a_number_is_still_accepted(tx_id: str, quote: str) -> None:
    body = f"{quote}{tx_id}{quote}".encode()
    assert classify_submit(RawAnswer(200, body), tx_id).kind is K.ACCEPTED
    assert classify_submit(RawAnswer(200, body), TX).kind is K.LIAR


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30),
        (" 5 ", 5),
        ("0", 0),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 30, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("\u0663", None),
    ],
)
def test_retry_after_is_whole_seconds_or_nothing(header: str | None, seconds: int | None) -> None:
    assert classify_submit(raw(429, retry_after=header), TX).retry_after_s == seconds


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([TX, ALL_SPENT, NO_VALUE]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["code", "message"]), inner),
    max_leaves=8,
)
_bodies = (
    st.binary()
    | st.text().map(str.encode)
    | _json.map(lambda value: json.dumps(value).encode())
    | _json.map(lambda value: json.dumps(json.dumps(value)).encode()[:-1])
    | st.sampled_from([answer.body for answer, _ in ANSWERS.values()])
    | st.integers(1, 60_000).map(lambda depth: b"[" * depth)
    | st.integers(4_000, 6_000).map(lambda digits: b'{"code": ' + b"9" * digits + b"}")
)


@given(
    st.builds(
        RawAnswer,
        status=st.none() | st.integers() | st.sampled_from([200, 202, 400, 402, 409, 425, 429, 500]),
        body=_bodies,
        retry_after=st.none() | st.text(),
        error=st.none() | st.sampled_from(TransportError),
        body_sent=st.booleans(),
    )
)
def test_no_answer_crashes_the_classifier_and_only_a_2xx_is_accepted(answer: RawAnswer) -> None:
    classified = classify_submit(answer, TX)
    assert isinstance(classified, SubmitAnswer)
    if classified.kind is K.ACCEPTED:
        assert answer.status is not None
        assert 200 <= answer.status < 300
        assert answer.error is None
    if answer.status == 402:
        assert classified.kind is K.QUOTA


@given(st.text("0123456789abcdefABCDEF", min_size=64, max_size=64) | st.text(max_size=70))
def test_no_other_text_is_taken_for_our_transaction_id(text: str) -> None:
    named = classify_submit(RawAnswer(200, text.encode("utf-8", "replace")), TX)
    assert (named.kind is K.ACCEPTED) == (text.strip().lower() == TX)


def test_a_refusal_nested_too_deeply_to_parse_is_searched_as_text() -> None:
    assert classify_submit(RawAnswer(status=400, body=b"[" * 60_000), TX).kind is SubmitKind.CLIENT
