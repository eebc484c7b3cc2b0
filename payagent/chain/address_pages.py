"""The pages of an address's transaction list, newest first, as a read that can be resumed.

Never: I/O; treats rows that a fork may have moved as complete.
"""

from payagent.chain.blockfrost_parse import PAGE_ROWS
from payagent.chain.provider import AddressTx


class Pages:
    """Rows without a gap from the newest down, valid while the block `tip_hash` is on the chain.

    That block was the newest one before the first row was read. `number` is the next page to ask for.
    """

    def __init__(self, tip_hash: str, earlier: "Pages | None") -> None:
        self.tip_hash = tip_hash
        self.number = 1
        self.rows: dict[str, AddressTx] = {}
        self._earlier = earlier
        self._has_joined = False

    def take(self, page: tuple[AddressTx, ...]) -> bool:
        """Add a page. Returns False if rows between this page and the rows before may have been missed."""
        if self._has_joined and (not page or page[0].tx_id not in self.rows):
            return False
        self._has_joined = False
        self.rows |= {row.tx_id: row for row in page}
        self.number += 1
        if self._earlier is not None and page and page[-1].tx_id in self._earlier.rows:
            self._join(self._earlier, page[-1].tx_id)
            self._earlier = None
        return True

    def to_resume(self) -> "Pages":
        """Return the pages to resume from: the earlier ones until the two have met, then these."""
        return self._earlier or self

    def reaches(self, since_s: int) -> bool:
        """Whether the oldest row is older than a time."""
        return bool(self.rows) and next(reversed(self.rows.values())).time_s < since_s

    def since(self, since_s: int) -> tuple[AddressTx, ...]:
        """Return the rows since a time, oldest first."""
        return tuple(row for row in reversed(self.rows.values()) if row.time_s >= since_s)

    def _join(self, earlier: "Pages", shared_tx_id: str) -> None:
        """Continue below the rows read earlier. The next page begins with known rows.

        If a row above the meeting point is gone, the rows below it may have moved, and nothing is joined.
        """
        for tx_id in earlier.rows:
            if tx_id not in self.rows:
                return
            if tx_id == shared_tx_id:
                break
        self.tip_hash = earlier.tip_hash
        self.rows |= {tx_id: row for tx_id, row in earlier.rows.items() if tx_id not in self.rows}
        self.number = (len(self.rows) - 1) // PAGE_ROWS + 1
        self._has_joined = True
