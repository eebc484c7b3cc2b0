"""A daemon of a fleet waits for its database, and its HTTP server fails meanwhile."""

from pathlib import Path

from kit.daemon import launch
from kit.daemons_of_a_fleet import furnish
from kit.http import free_port
from kit.postgresql import needs_postgresql

from payagent.devnet.server import DevnetThread


@needs_postgresql
def test_a_server_that_fails_while_the_daemon_waits_is_no_orderly_end(tmp_path: Path) -> None:
    with DevnetThread() as devnet:
        folder = furnish(tmp_path / "a", devnet, f"postgresql://nobody@127.0.0.1:{free_port()}/no")
        process = launch(folder, module="kit.failing_server")
        _, said = process.communicate()
    assert process.returncode == 1
    assert "OSError at failing_server.py" in said
    assert "daemon.waits" in said
