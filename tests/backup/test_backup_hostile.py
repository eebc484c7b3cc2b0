"""Invalid and damaged backups, existing files, full disks and killed processes."""

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from io import BytesIO
from pathlib import Path

import pytest
from kit.agent import ADA, WORDS, World, world_with_clock
from kit.backup import PASSPHRASE, listing, put_back, settings_of, taken, with_keystore
from kit.cli import spawn
from kit.effort import pick

from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.backup.create import back_up
from payagent.backup.restore import restore
from payagent.core.problems import Refused

Members = dict[str, bytes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A wallet that has paid, and its backup beside its data folder."""
    with world_with_clock(tmp_path_factory.mktemp("original")) as made:
        with_keystore(made).fund(100 * ADA)

        async def pay() -> None:
            async with made.run() as run:
                await run.pay_in_block("known")

        asyncio.run(pay())
        taken(made)
        yield made


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    """The same wallet in a folder of its own. Nothing here changes its chain."""
    again = copy(original)
    again.folder = Path(shutil.copytree(original.folder, tmp_path / "data"))
    shutil.copy(original.folder.with_name("backup.tar"), tmp_path)
    return again


@pytest.fixture
def backup(world: World) -> Path:
    return world.folder.with_name("backup.tar")


def members_of(backup: Path) -> Members:
    with tarfile.open(backup) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def write(path: Path, members: Members, form: int = tarfile.GNU_FORMAT, **odd: object) -> Path:
    """A tar of these members; `odd` fields go to the header of the ledger."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name.endswith("ledger.db"):
                for field, value in odd.items():
                    setattr(info, field, value)
            tar.addfile(info, BytesIO(content))
    return path


def told(members: Members, **changes: object) -> Members:
    """The same members with a changed manifest."""
    manifest = json.loads(members["manifest.json"]) | changes
    return members | {"manifest.json": json.dumps(manifest).encode()}


def flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def renamed(members: Members, old: str, new: str) -> Members:
    return {new if name == old else name: content for name, content in members.items()}


def sparse_huge(members: Members) -> Members:
    manifest = json.loads(members["manifest.json"])
    return told(members, ledger=manifest["ledger"] | {"size": 2**60})


BENT: dict[str, Callable[[Members], Members]] = {
    "a path": lambda m: renamed(m, "ledger.db", "../ledger.db"),
    "an absolute path": lambda m: renamed(m, "ledger.db", "/tmp/ledger.db"),
    "another member at the end": lambda m: m | {"operator.token": b"x"},
    "another member between": lambda m: {"manifest.json": m["manifest.json"], "x": b"x"} | m,
    "no manifest": lambda m: {name: m[name] for name in ("keystore.json", "ledger.db")},
    "no ledger": lambda m: {name: m[name] for name in ("manifest.json", "keystore.json")},
    "a ledger that was changed": lambda m: m | {"ledger.db": flipped(m["ledger.db"])},
    "a keystore that was changed": lambda m: m | {"keystore.json": m["keystore.json"] + b" "},
    "a ledger that claims to be huge": sparse_huge,
    "a keystore that is huge": lambda m: m | {"keystore.json": b" " * 100_000},
    "a manifest that is huge": lambda m: m | {"manifest.json": b" " * 100_000},
    "a manifest that is no JSON": lambda m: m | {"manifest.json": b"{"},
    "a manifest that is a list": lambda m: m | {"manifest.json": b"[]"},
    "another version": lambda m: told(m, version=2),
    "a field too many": lambda m: told(m, more=1),
    "a number that is text": lambda m: told(m, payments="1"),
    "a truth for a number": lambda m: told(m, payments=True),
    "a time that is none": lambda m: told(m, made_at_ms=-1),
    "a member that is text": lambda m: told(m, ledger="ledger.db"),
    "another address": lambda m: told(m, address="addr_test1"),
    "another head": lambda m: told(m, head="1:" + "0" * 64),
    "fewer payments": lambda m: told(m, payments=0),
}


async def refuse(world: World, path: Path, code: str = "file_invalid/backup") -> str:
    before = listing(world.folder.parent) | {path.name}
    with pytest.raises(Refused) as refused:
        await put_back(world, path)
    assert refused.value.name == code
    assert listing(world.folder.parent) - {"restored.toml"} == before - {"restored.toml"}
    return refused.value.detail


async def test_a_tar_repacked_with_the_same_members_is_accepted(world: World, backup: Path) -> None:
    """This shows that the cases below are refused for their one defect only."""
    await put_back(world, write(backup.with_name("same.tar"), members_of(backup)))


@pytest.mark.parametrize("bent", BENT)
async def test_a_malformed_backup_is_refused_and_leaves_no_files(world: World, backup: Path, bent: str) -> None:
    await refuse(world, write(backup.with_name("bent.tar"), BENT[bent](members_of(backup))))


@pytest.mark.parametrize(
    "odd",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "keystore.json"},
        {"type": tarfile.DIRTYPE},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.GNUTYPE_SPARSE},
        {"size": 2**60},
        {"size": -1},
    ],
)
async def test_a_tar_member_that_is_not_a_regular_file_is_refused(
    world: World, backup: Path, odd: dict[str, object]
) -> None:
    members = members_of(backup)
    with (path := backup.with_name("bent.tar")).open("wb") as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in odd.items() if name == "ledger.db" else ():
                setattr(info, field, value)
            file.write(info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512))
        file.write(b"\0" * 10_240)
    await refuse(world, path)


async def test_a_pax_header_cannot_redirect_a_member(world: World, backup: Path) -> None:
    pax = {"path": "../ledger.db"}
    await refuse(
        world, write(backup.with_name("bent.tar"), members_of(backup), tarfile.PAX_FORMAT, pax_headers=pax)
    )


@pytest.mark.parametrize("kept", [0, 100, 512, 5000, -1024, -10_000])
async def test_a_truncated_backup_is_refused(world: World, backup: Path, kept: int) -> None:
    whole = backup.read_bytes().rstrip(b"\0")
    content = backup.read_bytes()[: len(whole) + 100] if kept == -1024 else backup.read_bytes()[:kept]
    (cut := backup.with_name("cut.tar")).write_bytes(content)
    await refuse(world, cut)


@pytest.mark.parametrize("added", [b"x", b"\0" * 100_000])
async def test_a_backup_with_trailing_data_is_refused(world: World, backup: Path, added: bytes) -> None:
    (long := backup.with_name("long.tar")).write_bytes(backup.read_bytes() + added)
    await refuse(world, long)


async def test_a_pipe_a_folder_or_a_missing_file_is_refused_as_a_backup(world: World, backup: Path) -> None:
    os.mkfifo(pipe := backup.with_name("pipe"))
    (folder := backup.with_name("folder")).mkdir()
    for path in (pipe, folder):
        await refuse(world, path)
    with pytest.raises(Refused, match="file_invalid/backup"):
        await put_back(world, backup.with_name("nothing"))


async def test_a_compressed_backup_is_refused(world: World, backup: Path) -> None:
    """Unpacking it could fill the disk."""
    path = backup.with_name("backup.tgz")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(backup, "ledger.db")
    await refuse(world, path)


async def test_a_backup_of_another_network_is_refused(world: World, backup: Path) -> None:
    settings = settings_of(world.folder.with_name("other"), network="preprod")
    with pytest.raises(Refused, match=r"config_invalid.*devnet"):
        await restore(settings, backup, Ports(SystemClock(), SystemRandomness()))
    assert not settings.data_dir.exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("keystore.json", "already_exists/keystore"),
        ("ledger.db", "already_exists/file"),
        ("ledger.db-wal", "already_exists/file"),
    ],
)
async def test_a_restore_does_not_touch_an_existing_wallet(
    world: World, backup: Path, name: str, code: str
) -> None:
    data_dir = world.folder.with_name("restored")
    data_dir.mkdir(mode=0o700)
    (data_dir / name).write_text("precious")
    await refuse(world, backup, code)
    assert (data_dir / name).read_text() == "precious"


async def test_a_restore_refuses_a_folder_that_others_can_read(world: World, backup: Path) -> None:
    data_dir = world.folder.with_name("restored")
    data_dir.mkdir(mode=0o755)
    (data_dir / "something").touch()
    await refuse(world, backup, "config_invalid")


async def test_a_backup_never_overwrites_a_file(world: World, backup: Path) -> None:
    before = backup.read_bytes()
    with pytest.raises(Refused, match="already_exists/file"):
        taken(world)
    (link := backup.with_name("link.tar")).symlink_to(backup.with_name("nowhere"))
    with pytest.raises(Refused, match="already_exists/file"):
        taken(world, link.name)
    assert backup.read_bytes() == before
    with pytest.raises(Refused, match="write_failed/backup"):
        back_up(settings_of(world.folder), backup.with_name("nowhere") / "backup.tar", 1)


async def test_no_secret_is_in_a_backup(world: World, backup: Path) -> None:
    content = backup.read_bytes()
    assert PASSPHRASE.encode() not in content
    assert WORDS.encode() not in content


def command(name: str, backup: Path, data_dir: Path, **options: object) -> "subprocess.Popen[str]":
    arguments = [name, str(backup), "--config", str(data_dir.with_name(f"{data_dir.name}.toml"))]
    environ = {"PYTHONDONTWRITEBYTECODE": "1"}  # a limit on its files would cut Python's bytecode short, for all
    return spawn(*arguments, "--json", environ=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize(
    ("name", "room_bytes"),
    [("backup", 8_192), ("restore", 100_000), ("backup", 100_000), ("restore", 8_192)][: pick(2, 4)],
)
async def test_a_full_disk_ends_backup_and_restore_with_an_error_and_leaves_no_files(
    world: World, backup: Path, name: str, room_bytes: int
) -> None:
    data_dir = world.folder if name == "backup" else world.folder.with_name("restored")
    settings_of(data_dir)
    file = backup.with_name("second.tar") if name == "backup" else backup

    def little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, room_bytes))

    with closing(sqlite3.connect(world.folder / "ledger.db")) as conn:
        conn.execute("SELECT 1 FROM apps").fetchone()  # the ledger is open, as a running daemon has it
        before = listing(world.folder.parent)
        process = command(name, file, data_dir, preexec_fn=little_room)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (2, ""), err
        assert json.loads(err)["reason"] == "backup"
        assert listing(world.folder.parent) == before


async def test_a_killed_restore_leaves_no_wallet_and_does_not_block_the_next_one(
    world: World, backup: Path
) -> None:
    """It is killed after unpacking, while it waits for a provider that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        data_dir = world.folder.with_name("restored")
        settings_of(data_dir, f"http://127.0.0.1:{silent.getsockname()[1]}/api/v0")
        process = command("restore", backup, data_dir)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            with pytest.raises(Refused, match="already_exists/file"):
                await put_back(world, backup)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
    assert listing(data_dir) <= {".restoring", ".restoring/keystore.json", ".restoring/ledger.db"}
    _, restored = await put_back(world, backup)
    assert listing(restored.data_dir) == {"keystore.json", "ledger.db", "operator.token"}


async def test_ctrl_c_during_a_restore_leaves_no_files(world: World, backup: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        data_dir = world.folder.with_name("restored")
        settings_of(data_dir, f"http://127.0.0.1:{silent.getsockname()[1]}/api/v0")
        before = listing(world.folder.parent)
        process = command("restore", backup, data_dir)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert listing(world.folder.parent) == before
