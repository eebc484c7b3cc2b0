"""The trace of a run: its lines, how often each event was reached, the violations, and a hash over all lines.

Never: changes what happens.
"""

import hashlib
from collections import Counter
from collections.abc import Callable

from sim.canaries import Canaries
from sim.reached_names import reached_name


class Trace:
    """The trace of a run. Lines are kept only on request; the hash always covers all of them."""

    def __init__(self, seed: int, time_s: Callable[[], float], canaries: Canaries, *, keep: bool = False) -> None:
        self.seed = seed
        self.reached: Counter[str] = Counter()
        self.violations: list[str] = []
        self.lines: list[str] = []
        self._time_s = time_s
        self._canaries = canaries
        self._written = bytearray()
        self._keep = keep
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def tell(self, text: str) -> None:
        """Add a line."""
        line = f"{self._time_s():10.3f}  {text}"
        data = line.encode()
        self._hash.update(data)
        self._written += data
        if self._keep:
            self.lines.append(line)

    def reach(self, event: str) -> None:
        """Count an event of interest, named in plain words."""
        self.reached[reached_name(event)] += 1

    def at_rest(self) -> None:
        """Search all lines, with the errors that clients got, for secrets, and drop them."""
        self.keeps_secrets("what was told", bytes(self._written))
        self._written.clear()

    def keeps_secrets(self, where: str, data: bytes) -> None:
        """I5: written, sent or logged data holds no secret."""
        if (name := self._canaries.found_in(data)) is not None:
            self.violations.append(f"I5: {where} holds {name}")

    def violate(self, invariant: str, detail: str) -> None:
        """Record a violated invariant. The first one counts; others may follow from it."""
        text = f"{invariant}: {detail}"
        self.tell(f"VIOLATION {text}")
        self.violations.append(text)
