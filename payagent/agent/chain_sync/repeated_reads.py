"""Counts identical reads of one provider, which stand in for a second provider's answer.

May import: nothing but the standard library. Never: does I/O; reads a clock.
"""

from collections.abc import Container, Hashable
from dataclasses import dataclass

READS = 3
EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class _Seen:
    what: Hashable
    tip_hash: str
    count: int
    at_ms: int


class RepeatedReads:
    """For each subject: the value read, how often in a row, at which tip last, and when."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] = {}

    def is_enough(self, subject: str, what: Hashable, tip_hash: str, now_ms: int) -> bool:
        """Note a read. Whether the value was the same at three tips, each a minute after the one before."""
        was = self._seen.get(subject)
        if was is None or was.what != what or now_ms < was.at_ms:
            was = _Seen(what, "", 0, now_ms - EVERY_MS)
        if tip_hash != was.tip_hash and now_ms >= was.at_ms + EVERY_MS:
            was = _Seen(what, tip_hash, was.count + 1, now_ms)
        self._seen[subject] = was
        return was.count >= READS

    def is_due(self, subject: str, tip_hash: str, now_ms: int) -> bool:
        """Whether a read now could count."""
        was = self._seen.get(subject)
        return was is None or not (tip_hash == was.tip_hash or 0 <= now_ms - was.at_ms < EVERY_MS)

    def keep(self, subjects: Container[str]) -> None:
        """Forget all other subjects: one that was not read again starts anew."""
        self._seen = {subject: seen for subject, seen in self._seen.items() if subject in subjects}

    def forget(self, subject: str) -> None:
        self._seen.pop(subject, None)
