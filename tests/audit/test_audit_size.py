"""An export takes no more memory for more payments. By hand: `python tests/audit/test_audit_size.py 50000`."""

import multiprocessing
import resource
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

from payagent.audit.export import FORMATS, Format, export
from payagent.audit.statement import statement
from payagent.core import ledger
from payagent.core.address import encode_address
from payagent.core.invoice import Invoice, Output
from payagent.core.payment import Event
from payagent.store import records
from payagent.store.queries import EVERYTHING
from payagent.store.writer import Readers, Unit, migrate, open_database

ORIGIN = "https://merchant.example"
PAID = (Output("pay_to", encode_address(bytes([0x60]) + bytes(28)), "lovelace", 2_000_000),)
HOLD = {"lovelace": 2_170_000}
PAYMENTS = 3_000
PEAK_MAX_BYTES = 2_000_000


def make(path: Path, count: int) -> None:
    """So many confirmed payments, as far as the journal tells of them."""
    conn = open_database(path)
    migrate(conn)
    unit = Unit(conn)
    conn.execute("BEGIN")
    records.add_app(unit, "app", "app", "0" * 64, ["pay"], 1)
    for n in range(count):
        payment_id, intent_id = f"pay_{n:024x}", f"int_{n:024x}"
        records.add_intent(
            unit, intent_id=intent_id, app_id="app", key=intent_id, derived=False, fingerprint="f", origin=ORIGIN,
            request=None, request_id="r", now_ms=n,
        )  # fmt: skip
        invoice = Invoice("t-backend", ORIGIN, f"inv{n}", "devnet", PAID, None)
        seq = records.add_invoice(unit, invoice, intent_id, n, "{}")
        records.add_payment(
            unit, payment_id=payment_id, kind="invoice", app_id="app", intent_id=intent_id, invoice_seq=seq,
            outputs=records.output_rows(invoice), now_ms=n,
        )  # fmt: skip
        records.move_payment(unit, payment_id, Event.HOLD, n, anchor=f"{n:064x}#0")
        records.place_hold(unit, payment_id, HOLD, n)
        account = ledger.merchant_account(ORIGIN)
        for entry in (
            ledger.deposit(HOLD),
            ledger.reserve(HOLD),
            ledger.post(HOLD, {"lovelace": 2_000_000}, 170_000, account),
        ):
            own = {} if entry.kind == "deposit" else {"payment_id": payment_id}
            records.write_entry(unit, entry, n, ref=f"{n:064x}", **own)
    conn.execute("COMMIT")
    conn.close()


def chars_of(path: Path, form: Format) -> int:
    with Readers(path).snapshot() as conn:
        return sum(len(piece) for piece in export(statement(conn, EVERYTHING, "devnet"), form))


def test_the_whole_export_is_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    make(path, PAYMENTS)
    for form in FORMATS:
        tracemalloc.start()
        chars = chars_of(path, form)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert chars > 1_000_000, form
        assert peak < PEAK_MAX_BYTES, (form, peak)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ledger.db"
        maker = multiprocessing.Process(target=make, args=(file, int(sys.argv[1])))  # its memory is not counted
        maker.start()
        maker.join()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for form in FORMATS:
            began = time.perf_counter()
            chars = chars_of(file, form)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            print(f"{form}: {chars} characters in {time.perf_counter() - began:.1f} s, {grown} MiB more")
