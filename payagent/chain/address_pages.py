"""The pages of an address's transactions, newest first, which reading can go on with where it broke off.

May import: chain.provider, chain.blockfrost_parse. Never: I/O; takes rows for a whole that a fork may have moved.
"""

from payagent.chain.blockfrost_parse import PAGE_ROWS
from payagent.chain.provider import AddressTx


class Pages:
    """Rows without a gap from the newest down, as long as the block `tip_hash` is on the chain.

    It was the newest one before the first of them was read. `number` is of the page to ask for next.
    """

    def __init__(self, tip_hash: str, earlier: "Pages | None") -> None:
        self.tip_hash = tip_hash
        self.number = 1
        self.rows: dict[str, AddressTx] = {}
        self._earlier = earlier
        self._has_joined = False

    def take(self, page: tuple[AddressTx, ...]) -> bool:
        """Add a page; False when rows between it and those before may have moved out of sight."""
        if self._has_joined and (not page or page[0].tx_id not in self.rows):
            return False
        self._has_joined = False
        self.rows |= {row.tx_id: row for row in page}
        self.number += 1
        if self._earlier is not None and page and page[-1].tx_id in self._earlier.rows:
            self._join(self._earlier, page[-1].tx_id)
            self._earlier = None
        return True

    def kept(self) -> "Pages":
        """What to go on with: this, or what was read earlier while the two have not met."""
        return self._earlier or self

    def reach(self, since_s: int) -> bool:
        """Whether the oldest row is from before a time."""
        return bool(self.rows) and next(reversed(self.rows.values())).time_s < since_s

    def since(self, since_s: int) -> tuple[AddressTx, ...]:
        """Oldest first."""
        return tuple(row for row in reversed(self.rows.values()) if row.time_s >= since_s)

    def _join(self, earlier: "Pages", met: str) -> None:
        """Go on below what was read earlier, whose next page begins with rows that are known.

        Where a row is gone from above the one where the two meet, those below it may have moved meanwhile.
        """
        for tx_id in earlier.rows:
            if tx_id not in self.rows:
                return
            if tx_id == met:
                break
        self.tip_hash = earlier.tip_hash
        self.rows |= {tx_id: row for tx_id, row in earlier.rows.items() if tx_id not in self.rows}
        self.number = (len(self.rows) - 1) // PAGE_ROWS + 1
        self._has_joined = True
