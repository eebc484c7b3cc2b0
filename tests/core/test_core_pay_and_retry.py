"""The steps of a proof's retries, for each course that a merchant's answers can take."""

import pytest

from payagent.core.pay_and_retry import Answered, AwaitReady, End, Present, RetryVerdict, Wait, present_proof

TX, OTHER_TX = "ab" * 32, "cd" * 32
LOST = None


def answered(
    verdict: RetryVerdict,
    status: int = 402,
    after_s: float | None = None,
    *,
    poll: str | None = None,
    served: bool = False,
) -> Answered:
    return Answered(verdict, "a reason", status, after_s, poll, served)


SERVED = answered(RetryVerdict.SERVED, 200)
PENDING = answered(RetryVerdict.PENDING, 402, 2.0)
LATER = answered(RetryVerdict.PENDING, 202, 2.0, poll="tx=1")
BUSY = answered(RetryVerdict.UNCLEAR, 503, 2.0)


def run(
    *answers: Answered | None, tx_ids: tuple[str | None, ...] = (), waits: int = 99
) -> tuple[list[object], object]:
    """The steps without `AwaitReady`, and the end. There is time for that many waits."""
    steps, result, seen = present_proof(), None, []
    given, ids, left = iter(answers), iter(tx_ids), waits
    while True:
        match step := steps.send(result):
            case AwaitReady():
                result = next(ids, TX)
                continue
            case Present():
                result = next(given)
            case Wait():
                left -= 1
                result = True if left < 0 else None
            case End():
                assert next(steps, "nothing follows") == "nothing follows"
                return seen, step
        seen.append(step)


PROOF, POLL = Present(None), Present("tx=1")


def test_a_proof_is_presented_until_it_is_served() -> None:
    assert run(SERVED) == ([PROOF], End.SERVED)
    assert run(PENDING, BUSY, SERVED) == ([PROOF, Wait(2.0), PROOF, Wait(2.0), PROOF], End.SERVED)


def test_a_proof_without_an_answer_is_presented_again_later_and_later() -> None:
    waits = [Wait(0.5), Wait(1.0), Wait(2.0), Wait(4.0), Wait(8.0), Wait(10.0), Wait(10.0)]
    seen, end = run(*[LOST] * 7, SERVED)
    assert (seen[1::2], end) == (waits, End.SERVED)


def test_the_outcome_is_polled_for_until_another_transaction_replaces_the_one_that_was_presented() -> None:
    polled = [PROOF, Wait(2.0), POLL, Wait(0.5), POLL, Wait(2.0)]
    assert run(LATER, LOST, LATER, SERVED) == ([*polled, POLL], End.SERVED)
    assert run(LATER, LOST, LATER, SERVED, tx_ids=(TX, TX, TX, OTHER_TX)) == ([*polled, PROOF], End.SERVED)


@pytest.mark.parametrize("verdict", [RetryVerdict.USED_UP, RetryVerdict.INVOICED])
@pytest.mark.parametrize("after_s", [None, 2.0])
def test_a_proof_is_used_up_only_if_it_has_served_a_request(verdict: RetryVerdict, after_s: float | None) -> None:
    assert run(answered(verdict, after_s=after_s, served=True)) == ([PROOF], End.USED_UP)
    assert run(answered(verdict, after_s=2.0), SERVED) == ([PROOF, Wait(2.0), PROOF], End.SERVED)
    assert run(answered(verdict)) == ([PROOF], End.UNSERVED)


def test_a_402_to_a_poll_says_nothing_of_the_proof() -> None:
    anew = answered(RetryVerdict.INVOICED, after_s=2.0, served=True)
    assert run(LATER, anew, SERVED) == ([PROOF, Wait(2.0), POLL, Wait(2.0), PROOF], End.SERVED)


@pytest.mark.parametrize(("status", "end"), [(402, End.UNSERVED), (403, End.FINAL), (307, End.FINAL)])
def test_an_answer_without_a_retry_is_the_last(status: int, end: End) -> None:
    assert run(BUSY, answered(RetryVerdict.OTHER, status)) == ([PROOF, Wait(2.0), PROOF], end)


@pytest.mark.parametrize(
    ("answer", "end"), [(PENDING, End.UNSERVED), (BUSY, End.FINAL), (LATER, End.FINAL), (LOST, End.FINAL)]
)
def test_when_time_is_up_the_last_answer_says_how_it_ends(answer: Answered | None, end: End) -> None:
    seen, ended = run(answer, waits=0)
    assert (seen[0], len(seen), ended) == (PROOF, 2, end)
    assert run(answer, tx_ids=(TX, None))[1] is end
    assert run(PENDING, LOST, waits=1)[1] is End.UNSERVED
    assert run(tx_ids=(None,)) == ([], End.FINAL)
