"""Many invoices at once, paid from a wallet that has one coin: until all are durable, and until all are confirmed.

No transaction can wait for a block here: the wallet has to make coins of its one coin on the way. The devnet's
mempool and blocks have mainnet's sizes.
"""

import asyncio
import math
import time
from collections.abc import Iterator

from benchmarks.clients import Json, until_taken
from benchmarks.measure import Spread, memory_mb
from benchmarks.paying import payments, require
from benchmarks.results import Bound, Cell, Options, Part, Table
from benchmarks.stage import Stage, stage, until

UTXO_LOVELACE = 10_000_000_000
PRICE_LOVELACE = "4000000"
"""With the shares 7 ADA, so that the coin is worth a thousand."""

BLOCK_S = 5
BLOCK_BYTES = 90_112
RETRY_S = 0.05
FEE_FIXED_LOVELACE, FEE_PER_BYTE_LOVELACE = 155_381, 44
HOW = """\
Every invoice is forwarded by a client of its own, all at the same moment; a client that is told to try again does.
The wallet has one coin of 10,000 ADA, and blocks come every 5 seconds. Durable is what was answered with 201.
"""


def measure(options: Options) -> Part:
    count = options.pick(200, 1_000)
    part = Part("burst", f"{count:,} invoices at once, one coin", HOW)
    with stage([UTXO_LOVELACE], devnet_options=("--block-time", str(BLOCK_S))) as up:
        up.http.post(f"{up.merchant}/merchant/settings", json={"price": PRICE_LOVELACE}).raise_for_status()
        calls = payments(up, "burst", count)
        start_s = time.perf_counter()
        answers, again = asyncio.run(until_taken(up.api, calls, RETRY_S))
        require(answers, 201)
        durable_s = time.perf_counter() - start_s
        spread = Spread.of([answer.ms for answer in answers])
        until(lambda: not _open(up), "all are confirmed", patience_s=600)
        confirmed_s = time.perf_counter() - start_s
        paid = list(_all_payments(up))
        heights = {payment["block"]["height"] for payment in paid}
        size_bytes = sum((int(payment["fee"]) - FEE_FIXED_LOVELACE) // FEE_PER_BYTE_LOVELACE for payment in paid)
        fewest = math.ceil(size_bytes / BLOCK_BYTES)
        part.bounds.append(Bound("blocks that they took", len(heights), fewest + 2, "blocks"))
        findings = up.get("/v1/ledger/reconcile")["findings"]
        part.bounds.append(Bound("differences between ledger and chain after it", len(findings), 0, ""))
        rows: list[tuple[Cell, ...]] = [
            ("durable, s", durable_s),
            ("confirmed, s", confirmed_s),
            ("ms to an answer, median", spread.median),
            ("ms to an answer, p99", spread.p99),
            ("asked again", sum(again.values())),
            ("bytes of all transactions", size_bytes),
            ("blocks that they took", len(heights)),
            ("blocks that so many bytes need", fewest),
            ("MB of the daemon at its peak", round(memory_mb(up.pid, "VmHWM"))),
        ]
        rows += [(f"asked again: {code}", times) for code, times in again.items()]
        part.tables.append(Table("What came of it", ("", ""), rows))
    return part


def _open(up: Stage) -> bool:
    """Whether anything is still to be confirmed."""
    states = ("reserved", "signed", "in_flight", "in_block")
    return any(up.get(f"/v1/payments?state={state}&limit=1")["payments"] for state in states)


def _all_payments(up: Stage) -> Iterator[Json]:
    cursor = ""
    while True:
        page = up.get(f"/v1/payments?limit=100{cursor}")
        yield from page["payments"]
        if page["cursor"] is None:
            return
        cursor = f"&cursor={page['cursor']}"
