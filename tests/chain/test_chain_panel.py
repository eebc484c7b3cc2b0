"""How long a provider that was caught at a lie is not heard."""

from itertools import permutations

from payagent.chain.member import SENTENCE_MS, Sentence

LATER_MS = 10 * SENTENCE_MS


def test_lies_of_one_moment_are_one_sentence_in_whatever_order_they_are_found_out() -> None:
    once = Sentence().after(LATER_MS)
    again_ms = LATER_MS + SENTENCE_MS + 1000
    for found in permutations((again_ms, again_ms + 300, again_ms + 900)):
        sentence = once
        for at_ms in found:
            sentence = sentence.after(at_ms)
        assert sentence.is_relapse
        assert sentence.holds(again_ms)
        assert sentence.holds(again_ms + 900 + SENTENCE_MS - 1)
        assert not sentence.holds(again_ms + 900 + SENTENCE_MS)


def test_one_that_lies_again_soon_after_its_sentence_has_relapsed_and_long_after_it_has_not() -> None:
    once = Sentence().after(LATER_MS)
    assert not once.is_relapse
    over_ms = LATER_MS + SENTENCE_MS
    assert once.after(over_ms).is_relapse
    assert once.after(over_ms + SENTENCE_MS).is_relapse
    assert not once.after(over_ms + SENTENCE_MS + 1).is_relapse
    assert once.after(over_ms).after(over_ms + SENTENCE_MS).is_relapse


def test_a_clock_that_is_put_back_a_day_begins_a_sentence_of_its_own() -> None:
    day_ms = 86_400_000
    sentence = Sentence().after(LATER_MS + day_ms).after(LATER_MS)
    assert sentence == Sentence().after(LATER_MS)
