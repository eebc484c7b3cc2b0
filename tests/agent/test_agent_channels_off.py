"""Where channels are off, no module of theirs is imported and no table of theirs is read."""

import subprocess
import sys
from pathlib import Path

from kit.agent import ADA, world_apart


def test_a_daemon_without_channels_imports_no_module_of_theirs() -> None:
    code = (
        "import sys, payagent.daemon.serve, payagent.proxy.payer, payagent.client\n"
        "parts = ('channels', 'x402_batch', 'call_views', 'ceiling_file')\n"
        "pages = ('payagent.api.', 'payagent.dashboard.')\n"
        "print([name for name in sys.modules if name.endswith(parts) and not name.startswith(pages)])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


async def test_a_payment_without_channels_reads_no_table_of_theirs(tmp_path: Path) -> None:
    with world_apart(tmp_path) as world:
        world.fund(50 * ADA)
        async with world.run() as run:
            await run.run_pass()
            seen: list[str] = []
            run.context.conn.set_trace_callback(seen.append)
            row = await run.pay_in_block()
            await run.agent.deliveries_of(row.id).record_delivery(row.id, 200)
            run.context.conn.set_trace_callback(None)
            assert seen
            assert not [sql for sql in seen if "channel" in sql]
