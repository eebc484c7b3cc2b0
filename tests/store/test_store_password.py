"""A password for the database leaves only for a server that proved who it is, or that is on this machine."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from kit.postgresql import Server, needs_postgresql
from pydantic import ValidationError

from payagent.core.problems import Refused
from payagent.settings.schema import StoreSettings
from payagent.store.db.fence import Seat
from payagent.store.db.postgresql.committer import PostgresqlCommitter
from payagent.store.db.postgresql.connection import Database, PostgresqlConnection

PASSWORD = "a password that nobody is told"
NOWHERE = "192.0.2.1"
"""An address of documentation: nobody is there."""


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@db.example/d",
        "postgresql://u@db.example/d?sslmode=require",
        "postgresql://u@db.example/d?sslmode=verify-ca",
        f"postgresql://u@localhost/d?hostaddr={NOWHERE}",
        "postgresql://u@127.0.0.1,db.example/d",
        "postgresql://u@127.0.0.999/d",  # looked up as a name
        "postgresql://u@/d?host=/run/postgresql,db.example",
        "postgresql://u@/d?service=elsewhere",
    ],
)
def test_another_host_is_refused_unless_its_certificate_and_name_are_checked(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    for make in (PostgresqlConnection, lambda at: PostgresqlCommitter(at, seat=Seat("one", "host", {}))):
        with pytest.raises(Refused, match="sslmode=verify-full") as refused:
            make(Database(url, PASSWORD))
        assert refused.value.code == "config_invalid"


@pytest.mark.parametrize(
    "where", ["u:secret@localhost/d", "u@localhost/d?password=x", "u@localhost/d?sslpassword=x"]
)
def test_a_url_with_a_password_is_refused(where: str) -> None:
    """Doctor and errors show the URL."""
    with pytest.raises(ValidationError, match="url has a password"):
        StoreSettings(url=f"postgresql://{where}")


@needs_postgresql
def test_the_environment_leads_to_no_other_host(postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = postgresql.tcp_url(postgresql.new_database())
    for name, value in (("PGHOST", "db.example"), ("PGHOSTADDR", NOWHERE), ("PGREQUIREAUTH", "password")):
        monkeypatch.setenv(name, value)
    with closing(PostgresqlConnection(url)) as conn:
        assert conn.execute("SELECT host(inet_server_addr())").fetchone() == ("127.0.0.1",)


@pytest.fixture
def asks_in_clear() -> Iterator[tuple[int, list[bytes]]]:
    """A server that asks for the password in clear: its port, and what it is told after that."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with server.accept()[0] as client:
                while (asked := client.recv(1_000))[4:8] == b"\x04\xd2\x16\x2f":  # TLS? no
                    client.sendall(b"N")
                assert asked
                client.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")
                told.append(client.recv(1_000))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], told
        thread.join()


def test_a_program_that_asks_for_the_password_in_clear_is_told_nothing(
    asks_in_clear: tuple[int, list[bytes]],
) -> None:
    port, told = asks_in_clear
    with pytest.raises(Exception, match="scram-sha-256"):
        PostgresqlConnection(Database(f"postgresql://u@127.0.0.1:{port}/d", PASSWORD))
    assert told in ([], [b""])
