"""How the daemon starts, when it refuses to start, and how it stops: real processes on real files."""

import fcntl
import json
import os
import re
import resource
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from kit.canaries import plant
from kit.cli import invoke
from kit.daemon import (
    PASSPHRASE,
    SOMEBODY,
    WORDS,
    announced,
    announced_at,
    command,
    health,
    log_of_a_run,
    refused,
    start,
    stop,
    write_config,
)
from kit.http import NO_TLS

from payagent.agent.base.ports import SystemClock
from payagent.api.http.listeners import listen_unix
from payagent.core.network import NETWORKS
from payagent.core.problems import Refused
from payagent.devnet.server import DevnetThread
from payagent.doctor.chain import check_chain
from payagent.secret_file import require_out_of_reach, require_unchanged_by_others
from payagent.settings.config_file import config_paths
from payagent.settings.loading import load_settings
from payagent.store.db.lease import require_local
from payagent.store.db.writer import Writer
from payagent.wallet.keystore import read_header
from payagent.wallet.new_keystore import create

FEW_FILES = 128


def test_the_socket_is_private_to_its_owner_and_removed_at_the_stop(folder: Path) -> None:
    process, path = start(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert health(socket.AF_UNIX, str(path)).startswith(b"HTTP/1.1 200 ")
    code, talk = stop(process)
    assert code == 0, talk
    assert not path.exists()


def test_a_log_that_nobody_reads_does_not_block_the_daemon(folder: Path) -> None:
    """For example, a program starts it with a pipe and never reads it."""
    process, path = start(folder)
    assert process.stderr is not None
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, resource.getpagesize())
    for _ in range(100):  # a line each, twice what the pipe takes
        process.send_signal(signal.SIGHUP)
        assert health(socket.AF_UNIX, str(path)).startswith(b"HTTP/1.1 200 ")
    process.terminate()
    assert process.wait(60) == 0
    process.stderr.close()


def test_recovery_words_and_a_provider_in_clear_are_warned_of_at_each_start(folder: Path) -> None:
    """0.0.0.0 is not a loopback address. Nobody answers there, and the daemon still starts."""
    config, words = folder / "config.toml", folder / "data/recovery-words.txt"
    assert re.findall("words.left|provider.in_clear", "".join(log_of_a_run(folder))) == []
    words.write_text(WORDS)
    more = '[[chain.providers]]\nkind = "blockfrost"\nbase_url = "http://0.0.0.0:1/api/v0"\n'
    config.write_text(config.read_text().replace("[keystore]", more + "[keystore]"))
    log = log_of_a_run(folder)
    (of_words,) = [line for line in log if "words.left" in line]
    assert '"level": "warning"' in of_words
    assert str(words) in of_words
    (of_provider,) = [line for line in log if "provider.in_clear" in line]
    assert '"level": "warning"' in of_provider
    assert '"blockfrost-2"' in of_provider
    assert "https://" in of_provider
    assert WORDS not in "".join(log)


def test_a_provider_of_an_unknown_kind_is_refused_before_the_keystore_is_opened(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('kind = "blockfrost"', 'kind = "blockfrots"'))
    (folder / "passphrase").write_text("not the passphrase")
    code, talk = refused(folder)
    assert (code, "config_invalid" in talk, "write one of blockfrost" in talk) == (2, True, True), talk


def another_way(folder: Path, devnet: DevnetThread, name: str) -> Path:
    """A second config, with a socket and a data folder of its own name."""
    second = folder / name
    second.mkdir()
    (second / "passphrase").write_text(PASSPHRASE)
    (second / "passphrase").chmod(0o600)
    write_config(second, devnet)
    return second


def test_a_second_daemon_on_the_same_or_linked_files_of_the_wallet_refuses_to_start(
    folder: Path, devnet: DevnetThread
) -> None:
    by_link = another_way(folder, devnet, "second")
    (by_link / "data").symlink_to(folder / "data")
    linked = [by_link]
    for shared in ("ledger.db", "keystore.json"):
        second = another_way(folder, devnet, f"second-{shared}")
        (second / "data").mkdir(mode=0o700)
        create(second / "data/keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
        Writer(second / "data/ledger.db").close()
        (second / "data" / shared).unlink()
        os.link(folder / "data" / shared, second / "data" / shared)
        linked.append(second)
    process, _ = start(folder)
    for second in (folder, *linked):
        code, talk = refused(second)
        assert (code, "already_running" in talk, "another payagent runs" in talk) == (2, True, True), talk
    assert stop(process)[0] == 0
    for second in linked:
        process, _ = start(second)
        assert stop(process)[0] == 0


def test_a_daemon_whose_ledger_another_daemon_opened_stops_writing_and_exits(
    folder: Path, devnet: DevnetThread
) -> None:
    process, _ = start(folder)
    ledger = folder / "data/ledger.db"
    with closing(sqlite3.connect(ledger, isolation_level=None)) as conn:
        conn.execute("PRAGMA busy_timeout = 60000")
        conn.execute("UPDATE boot SET epoch = 'of a daemon that no lock kept away'")
        own = read_header(folder / "data/keystore.json").address
        body = {"address": own, "lovelace": "5000000"}
        httpx.post(f"{devnet.origin}/devnet/faucet", json=body, verify=NO_TLS, trust_env=False).raise_for_status()
        _, talk = process.communicate(timeout=60)
        assert process.returncode == 1, talk
        assert "lease_lost" in talk
        assert conn.execute("SELECT COUNT(*) FROM entries").fetchone() == (0,)


@pytest.mark.parametrize(
    ("kind", "is_refused"),
    [("nfs4", True), ("cifs", True), ("fuse.sshfs", True), ("ext4", False), ("tmpfs", False)],
)
def test_a_folder_on_a_network_file_system_is_refused(tmp_path: Path, kind: str, is_refused: bool) -> None:
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"21 1 0:5 / /proc rw - proc proc rw\n36 35 {os.major(device)}:{os.minor(device)} / / rw - {kind} x rw\n"
    )
    with pytest.raises(Refused, match=kind) if is_refused else nullcontext():
        require_local(tmp_path, mounts)


def test_the_socket_of_a_killed_daemon_does_not_prevent_the_next_start(folder: Path) -> None:
    process, path = start(folder)
    process.kill()
    process.communicate(timeout=60)
    assert path.exists()
    again, _ = start(folder)
    assert stop(again)[0] == 0


KILLED_AS_IT_COPIES = """
import os, signal, sys
from pathlib import Path
from payagent.store.db.readers import Readers

sys.addaudithook(lambda event, _: event == "os.remove" and os.kill(os.getpid(), signal.SIGKILL))
with Readers(Path(sys.argv[1])).copied():
    pass
"""


def test_a_leftover_copy_of_the_ledger_is_removed_at_the_start_and_nothing_else(folder: Path) -> None:
    data = folder / "data"
    (data / "snapshot-of-mine.db").write_text("precious")
    before = {path.name for path in data.iterdir()}
    killed = [sys.executable, "-c", KILLED_AS_IT_COPIES, str(data / "ledger.db")]
    assert subprocess.run(killed, timeout=120, check=False).returncode == -signal.SIGKILL
    (left,) = (data / ".scratch").iterdir()
    left.with_name(f"{left.name}-journal").write_bytes(b"of the copy")
    process, _ = start(folder)
    names = {path.name for path in data.iterdir()}
    assert stop(process)[0] == 0
    assert list((data / ".scratch").iterdir()) == []
    assert before <= names


def no_socket(path: Path, why: str) -> None:
    """`payagent serve` listens by this function. That a refusal ends it is tested below, in a shared folder."""
    with pytest.raises(Refused, match=why) as refused, listen_unix(path):
        pass
    assert refused.value.problem.exit_code == 2


def test_a_file_at_the_socket_path_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "s/payagent.sock"
    path.parent.mkdir(mode=0o700)
    path.write_text("precious")
    no_socket(path, "is not a socket")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_socket_in_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s/payagent.sock"
    path.parent.mkdir()
    path.parent.chmod(mode)
    no_socket(path, "can be written by others")
    assert not path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_socket_in_another_users_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o755)
    os.chown(tmp_path / "s", SOMEBODY, SOMEBODY)
    no_socket(tmp_path / "s/payagent.sock", "belongs to another user")


def test_a_socket_whose_folder_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("in the way")
    no_socket(tmp_path / "s/payagent.sock", "cannot be bound")


def test_a_data_folder_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "data").chmod(0o750)
    code, talk = refused(folder)
    assert code == 2
    assert "chmod 700" in talk


def _keystore_for_all(folder: Path, _tell_time: "TellTime") -> str:
    (folder / "data" / "keystore.json").chmod(0o644)
    return r"its mode is 0644, and only its owner may have access \(0600\)"


def _shared_socket_folder(folder: Path, _tell_time: "TellTime") -> str:
    (folder / "s").mkdir()
    (folder / "s").chmod(0o1777)
    return f"the folder of api.socket, can be written by others: choose another one; run: chmod go-w {folder}/s"


def _clock_ahead(folder: Path, tell_time: "TellTime") -> str:
    tell_time(-180)
    return r"the local clock is 1[78]\d s ahead"


def _clock_behind(folder: Path, tell_time: "TellTime") -> str:
    tell_time(180)
    return r"the local clock is 1[78]\d s behind"


def _merchant_in_clear(folder: Path, _tell_time: "TellTime") -> str:
    with (folder / "config.toml").open("a") as config:
        config.write('[merchants.t]\norigin = "http://merchant.example"\n')
    return "merchants.t.origin: write a URL with https://. http:// is accepted only for this machine"


def _config_for_all(folder: Path, _tell_time: "TellTime") -> str:
    (folder / "config.toml").chmod(0o666)
    return f"config.toml can be changed by others of this machine; run: chmod go-w {folder}/config.toml"


def _config_in_a_shared_folder(folder: Path, _tell_time: "TellTime") -> str:
    """Also if only a symlink leads through it."""
    shared = folder / "shared"
    shared.mkdir()
    (folder / "config.toml").rename(shared / "mine.toml")
    shared.chmod(0o777)
    (folder / "config.toml").symlink_to(shared / "mine.toml")
    return f"config.toml can be changed by others of this machine; run: chmod go-w {shared}"


def _config_in_reach_of_the_daemon(folder: Path, _tell_time: "TellTime") -> str:
    """On any network except the devnet, where nothing can be lost."""
    written = (folder / "config.toml").read_text().replace('network = "devnet"', 'network = "preprod"')
    (folder / "data/mine.toml").write_text(written)
    (folder / "config.toml").unlink()
    (folder / "config.toml").symlink_to(folder / "data/mine.toml")
    return f"config.toml lies in {folder}/data, where the daemon writes: .* move the config to a folder of its own"


TellTime = Callable[[int], None]


@pytest.fixture
def tell_time(folder: Path, devnet: DevnetThread) -> Iterator[TellTime]:
    """Replaces the config's provider by one whose clock is some seconds off."""
    off_s = 0

    class Provider(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = httpx.get(
                devnet.chain_url + self.path.removeprefix("/api/v0"), verify=NO_TLS, trust_env=False
            ).json()
            if "server_time" in told:
                told["server_time"] += 1000 * off_s
            raw = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            return

    def tell(seconds: int) -> None:
        nonlocal off_s
        off_s = seconds
        config = (folder / "config.toml").read_text()
        url = f"http://127.0.0.1:{server.server_address[1]}/api/v0"
        (folder / "config.toml").write_text(config.replace(devnet.chain_url, url))

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tell
        server.shutdown()


@pytest.mark.parametrize(
    "unsafe",
    [
        *(_keystore_for_all, _shared_socket_folder, _clock_ahead, _clock_behind, _merchant_in_clear),
        *(_config_for_all, _config_in_a_shared_folder, _config_in_reach_of_the_daemon),
    ],
)
def test_an_unsafe_setup_prevents_the_start_and_is_reported_by_doctor(
    folder: Path, tell_time: TellTime, unsafe: Callable[[Path, TellTime], str]
) -> None:
    sentence = unsafe(folder, tell_time)
    code, talk = refused(folder)
    assert code != 0
    assert re.search(sentence, talk)
    doctor = invoke("doctor", "--human", "--config", folder / "config.toml")
    assert doctor.code != 0
    assert re.search(sentence, " ".join((doctor.out + doctor.err).split()))


def test_on_the_devnet_one_folder_may_hold_everything_and_others_may_read_the_passphrase(folder: Path) -> None:
    (folder / "config.toml").rename(folder / "data/mine.toml")
    (folder / "config.toml").symlink_to(folder / "data/mine.toml")
    (folder / "passphrase").chmod(0o644)
    process, _ = start(folder)
    assert stop(process)[0] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given", ["config.toml", "."])
def test_a_config_of_another_user_is_refused(folder: Path, given: str) -> None:
    os.chown(folder / given, SOMEBODY, SOMEBODY)
    code, talk = refused(folder)
    assert code == 2, talk
    assert f"belongs to another user (uid {SOMEBODY})" in talk


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to any group")
def test_a_group_writable_config_folder_is_refused_unless_it_is_the_users_own_group(folder: Path) -> None:
    """Where each user has a private group, new folders are group-writable, and nobody else can write."""
    (folder / "mine").mkdir()
    (folder / "mine").chmod(0o775)
    (folder / "config.toml").rename(folder / "mine/config.toml")
    assert require_unchanged_by_others(folder / "mine/config.toml").endswith("(0644)")
    os.chown(folder / "mine", 0, SOMEBODY)
    with pytest.raises(Refused, match="chmod go-w"):
        require_unchanged_by_others(folder / "mine/config.toml")


def test_a_config_in_a_sticky_shared_folder_is_accepted(folder: Path) -> None:
    (folder / "shared").mkdir()
    (folder / "shared").chmod(0o1777)
    (folder / "config.toml").rename(folder / "shared/config.toml")
    assert require_unchanged_by_others(folder / "shared/config.toml").endswith("(0644)")


def test_the_daemon_must_not_be_able_to_create_a_config_that_the_next_start_prefers(tmp_path: Path) -> None:
    """Its user's home is its data folder, and the config is under /etc: neither exists yet."""
    paths = config_paths(None, {"HOME": str(tmp_path / "data")}, tmp_path / "etc")
    require_out_of_reach(paths, [tmp_path / "elsewhere"])
    with pytest.raises(Refused, match=r"data/\.config/payagent/config\.toml lies in"):
        require_out_of_reach(paths, [tmp_path / "data"])
    require_out_of_reach(
        config_paths(tmp_path / "etc/mine.toml", {"HOME": str(tmp_path / "data")}), [tmp_path / "data"]
    )


async def test_doctor_blames_a_clock_far_ahead_and_not_the_provider(folder: Path) -> None:
    """By such a clock the newest block looks old."""
    settings = load_settings(folder / "config.toml", {"HOME": str(folder)})
    [found] = await check_chain(settings, lambda: SystemClock().now_ms() + 3_600_000)
    assert re.search(r"the local clock is 3[56]\d\d s ahead", found.detail), found


def test_a_clock_that_is_slightly_off_does_not_prevent_the_start(folder: Path, tell_time: TellTime) -> None:
    tell_time(100)
    process, _ = start(folder)
    assert stop(process)[0] == 0


def test_a_keystore_of_another_network_is_refused(folder: Path, devnet: DevnetThread) -> None:
    write_config(folder, devnet, network="preview")
    code, talk = refused(folder)
    assert code == 5
    assert "the keystore is for devnet" in talk


def test_a_ledger_of_another_wallet_is_refused(folder: Path) -> None:
    process, _ = start(folder)
    assert stop(process)[0] == 0
    (folder / "data/keystore.json").unlink()
    create(folder / "data/keystore.json", "zoo " * 23 + "vote", PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
    code, talk = refused(folder)
    assert code == 2
    assert "ledger.db belongs to address" in talk


def test_a_wrong_passphrase_is_refused_and_not_repeated(folder: Path) -> None:
    wrong = plant("the wrong passphrase", "canary of a wrong passphrase")
    (folder / "passphrase").write_text(wrong)
    code, talk = refused(folder)
    assert code == 5
    assert "keystore_invalid" in talk or "passphrase is wrong" in talk
    assert wrong not in talk
    assert not (folder / "s").exists(), "it listened before it knew that it can pay"


@pytest.mark.parametrize("left", ["nothing", "no certificates"])
def test_an_unreadable_certificate_file_prevents_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    authorities = folder / "authorities.pem"
    if left != "nothing":
        authorities.write_text("these are none")
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities))
    code, talk = refused(folder)
    assert (code, json.loads(talk.splitlines()[-1])["code"]) == (2, "config_invalid"), talk
    assert f"SSL_CERT_FILE names {authorities}" in talk


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a first page"])
def test_a_wallet_whose_ledger_is_missing_does_not_get_an_empty_one(folder: Path, left: str) -> None:
    """Also if only ledger.db was copied while its content was still in ledger.db-wal."""
    ledger = folder / "data/ledger.db"
    page = ledger.read_bytes()[:4096]
    ledger.unlink()
    if left == "an empty file":
        ledger.touch()
    elif left == "a first page":
        with closing(sqlite3.connect(ledger)) as conn:
            conn.execute("PRAGMA journal_mode = WAL")
        assert 0 < ledger.stat().st_size <= len(page)
    before = ledger.read_bytes() if ledger.exists() else None
    code, talk = refused(folder)
    assert code == 2, talk
    assert "ledger_missing" in talk
    assert "pay twice" in talk
    assert (ledger.read_bytes() if ledger.exists() else None) == before


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "another file", "a pipe"])
def test_a_damaged_ledger_prevents_the_start_with_store_failed(folder: Path, damage: str) -> None:
    ledger = folder / "data/ledger.db"
    whole = ledger.read_bytes()
    if damage == "a pipe":
        ledger.unlink()
        os.mkfifo(ledger)
    else:
        bent = {"truncated": whole[: len(whole) // 2], "another file": b"not a database " * 999}
        ledger.write_bytes(bent.get(damage, whole[:100] + b"\xa5" * (len(whole) - 100)))
    code, talk = refused(folder)
    assert code == 1, talk
    assert "store_failed" in talk
    assert str(ledger) in talk


def test_python_with_assertions_disabled_is_refused(folder: Path) -> None:
    result = subprocess.run(command(folder, "-O"), capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 2
    assert "-O" in result.stderr


def test_an_unreachable_provider_is_reported_in_plain_words_and_logged_once(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config = folder / "config.toml"
    config.write_text(
        re.sub(r'base_url = ".+"', f'base_url = "http://127.0.0.1:{port}/api/v0"', config.read_text())
    )
    process, path = start(folder)
    said = b""
    while b"could not be read" not in said:
        said = health(socket.AF_UNIX, str(path), "/readyz")
    code, talk = stop(process)
    assert code == 0
    assert b"blockfrost-1: could not be read (tip: no connection)" in said
    assert b"Unknown" not in said
    assert talk.count("blockfrost-1: could not be read (tip: no connection)") == 1


def test_the_port_answers_only_to_loopback_and_configured_host_names(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("[api]\n", '[api]\nallowed_hosts = ["payagent.internal"]\n'))
    process, port, _ = announced(folder)
    told = {}
    for host in ("127.0.0.1", "payagent.internal", "evil.example"):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as conn:
            conn.sendall(f"GET /healthz HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
            told[host] = conn.makefile("rb").readline().split()[1]
    assert stop(process)[0] == 0
    assert told == {"127.0.0.1": b"200", "payagent.internal": b"200", "evil.example": b"403"}


def test_idle_connections_do_not_block_the_socket_or_fill_the_log(folder: Path) -> None:
    """There are more of them than file descriptors; after a while the port is usable again."""
    process, url, path = announced_at(folder, preexec_fn=_with_few_files)
    port = int(url.rpartition(":")[2])
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2 * FEW_FILES)]
    assert b" 200 " in health(socket.AF_UNIX, path)
    for connection in idle:
        connection.settimeout(60)
        with suppress(ConnectionError):
            assert connection.recv(1) == b""
        connection.close()
    assert b" 200 " in health(socket.AF_INET, ("127.0.0.1", port))
    code, talk = stop(process)
    assert code == 0
    assert len(talk) < 20_000


def _with_few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, FEW_FILES))


def test_no_secret_is_in_what_the_daemon_prints_or_in_its_environment(folder: Path) -> None:
    process, _ = start(folder, module="payagent")
    environment = (
        Path(f"/proc/{process.pid}/environ").read_bytes() + Path(f"/proc/{process.pid}/cmdline").read_bytes()
    )
    code, talk = stop(process)
    assert code == 0
    for secret in (WORDS, PASSPHRASE):
        assert secret not in talk
        assert secret.encode() not in environment
