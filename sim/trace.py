"""What happened in a run: its lines, how often each event was reached, what was violated, and a hash over all.

May import: the standard library, sim.canaries. Never: changes what happens.
"""

import hashlib
from collections import Counter
from collections.abc import Callable

from sim.canaries import Canaries


class Trace:
    """Lines are kept only when somebody will read them; the hash is always over all of them."""

    def __init__(self, seed: int, time_s: Callable[[], float], canaries: Canaries, *, keep: bool = False) -> None:
        self.seed = seed
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []
        self.lines: list[str] = []
        self._time_s = time_s
        self._canaries = canaries
        self._told = bytearray()
        self._keep = keep
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def tell(self, what: str) -> None:
        """One line."""
        line = f"{self._time_s():10.3f}  {what}"
        told = line.encode()
        self._hash.update(told)
        self._told += told
        if self._keep:
            self.lines.append(line)

    def reach(self, event: str) -> None:
        """Something that the run is to meet, in plain words, was met."""
        self.reached[event] += 1

    def at_rest(self) -> None:
        """What was told, errors that clients got among it, is looked through, and forgotten."""
        self.keeps_secrets("what was told", bytes(self._told))
        self._told.clear()

    def keeps_secrets(self, where: str, data: bytes) -> None:
        """I5: what was written, said or logged holds no secret."""
        if (name := self._canaries.found_in(data)) is not None:
            self.violations.append(f"I5: {where} holds {name}")

    def violate(self, invariant: str, what: str) -> None:
        """An invariant does not hold. The first one is what counts; more may follow from it."""
        text = f"{invariant}: {what}"
        self.tell(f"VIOLATION {text}")
        self.violations.append(text)
