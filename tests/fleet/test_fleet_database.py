"""PostgreSQL has a full disk: payments wait, then go on."""

from contextlib import suppress
from pathlib import Path

from fleetworld import drill_fleet
from kit.effort import long_only
from kit.postgresql import Server, needs_postgresql

pytestmark = needs_postgresql


@long_only
def test_payments_wait_while_the_databases_disk_is_full(tmp_path: Path, postgresql: Server) -> None:
    with postgresql.on_small_disk() as (url, disk), drill_fleet(tmp_path, postgresql, "ab", url) as drill:
        ballast = disk / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(65_536))
        one = drill.wanted()
        while drill.ask(one, "a") is not None:
            one = drill.wanted()
        assert one.codes == ["store_failed"]
        ballast.unlink()
        drill.pay(one, "a")
        drill.buy("b")
        drill.judge()
