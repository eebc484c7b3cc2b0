"""Counts identical reads of one provider, which stand in for a second provider's answer.

Never: does I/O; reads a clock.
"""

from collections.abc import Container, Hashable
from dataclasses import dataclass

READS = 3
EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class _LastRead:
    value: Hashable
    tip_hash: str
    count: int
    at_ms: int


class RepeatedReads:
    """For each subject: the value read, how often in a row, at which tip last, and when."""

    def __init__(self) -> None:
        self._seen: dict[str, _LastRead] = {}

    def is_enough(self, subject: str, value: Hashable, tip_hash: str, now_ms: int) -> bool:
        """Note a read. Whether the value was the same at three tips, each a minute after the one before."""
        last = self._seen.get(subject)
        if last is None or last.value != value or now_ms < last.at_ms:
            last = _LastRead(value, "", 0, now_ms - EVERY_MS)
        if tip_hash != last.tip_hash and now_ms >= last.at_ms + EVERY_MS:
            last = _LastRead(value, tip_hash, last.count + 1, now_ms)
        self._seen[subject] = last
        return last.count >= READS

    def is_due(self, subject: str, tip_hash: str, now_ms: int) -> bool:
        """Whether a read now could count."""
        last = self._seen.get(subject)
        return last is None or not (tip_hash == last.tip_hash or 0 <= now_ms - last.at_ms < EVERY_MS)

    def keep(self, subjects: Container[str]) -> None:
        """Forget all other subjects: one that was not read again starts anew."""
        self._seen = {subject: seen for subject, seen in self._seen.items() if subject in subjects}

    def forget(self, subject: str) -> None:
        self._seen.pop(subject, None)
