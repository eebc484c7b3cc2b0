"""The end of SQLite's log as a crash may leave it: cut anywhere, followed by garbage, its last pages torn.

Every commit whose sync had returned must be there; the last one, whose sync had not, is there as a whole or not.
"""

import asyncio
import os
import random
import shutil
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from kit.agent import ADA, World
from kit.crash import (
    UTXOS,
    CrashWorld,
    Dead,
    Disk,
    Script,
    assert_done,
    copy_files,
    crash_world,
    findings,
    head_of,
)
from kit.effort import IS_LONG, pick

from payagent.audit.finding import AuditFinding, Head
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.problems import Refused
from payagent.store.db.opening import require_ledger
from payagent.store.db.writer import Writer

HEADER, FRAME_HEADER = 32, 24
COMMITS = pick(2, 5)
"""How many of the last commits the tests cut into."""
BITS = pick(1, 3)
"""How many bits are flipped in each frame of the last commit, one at a time."""

Seal = tuple[int, str]


@dataclass
class Crashed:
    """The files right after a commit, and the newest seal for each durable length of the log."""

    world: CrashWorld
    files: Path
    seals: dict[int, Seal]

    @property
    def log(self) -> bytes:
        return (self.files / "ledger.db-wal").read_bytes()

    @property
    def frame(self) -> int:
        return int(struct.unpack(">I", self.log[8:12])[0]) + FRAME_HEADER

    @property
    def durable(self) -> list[int]:
        return sorted(self.seals)

    def expected(self, length: int) -> Seal:
        """The newest seal in a log of this length."""
        return self.seals[max(end for end in self.seals if end <= length)]

    def with_log(self, folder: Path, log: bytes) -> Path:
        """A folder with the database and this log."""
        folder.mkdir()
        shutil.copy(self.files / "ledger.db", folder / "ledger.db")
        (folder / "ledger.db-wal").write_bytes(log)
        return folder / "ledger.db"


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashed]:
    """The script up to a cancel's commit; its log has not been written back to the database."""
    folder = tmp_path_factory.mktemp("crashed")
    (folder / "marks").mkdir()
    with crash_world(folder) as world:
        world.fund(*[50 * ADA] * UTXOS)
        seals: dict[int, Seal] = {}

        def note(name: str) -> None:
            # runs on the writer's thread, so nothing is written meanwhile
            seals[(folder / "ledger.db-wal").stat().st_size] = head_of(folder / "ledger.db")
            if name == "after cancel" and not (folder / "kept").exists():
                copy_files(folder, folder / "kept")
                kept.update(seals)

        kept: dict[int, Seal] = {}

        async def live() -> None:
            async with world.run(
                checkpoint=Disk(folder, after=note), providers={"devnet": world.guard.url}
            ) as run:
                await Script(world, folder / "marks").drive(run)

        asyncio.run(live())
        assert len(kept) > COMMITS
        assert max(kept) == (folder / "kept" / "ledger.db-wal").stat().st_size
        yield Crashed(world, folder / "kept", kept)


def opened(world: World, path: Path, *, verified: bool = True) -> Seal:
    """Open the ledger as the daemon does, write to it and verify it; returns the newest seal found."""
    require_ledger(path)
    writer = Writer(path)
    try:
        found = head_of(path)
        writer.submit("probe", lambda unit: unit.conn.execute("INSERT INTO meta VALUES ('probe', '1')")).result()
    finally:
        writer.close()
    if verified:
        world.folder = path.parent
        assert findings(world) == []
    return found


def test_a_log_cut_anywhere_still_holds_every_commit_before_the_cut(crashed: Crashed, tmp_path: Path) -> None:
    log, frame, start = crashed.log, crashed.frame, crashed.durable[-1 - COMMITS]
    boundaries = list(range(start, len(log) + 1, frame))
    inside = (1, FRAME_HEADER - 1, FRAME_HEADER, FRAME_HEADER + 1, frame - 1)
    odd = [at + inside[number % len(inside)] for number, at in enumerate(boundaries[:-1])]
    assert set(crashed.durable[-1 - COMMITS :]) <= set(boundaries)
    seen = set()
    for length in [*boundaries, *odd]:
        path = crashed.with_log(tmp_path / str(length), log[:length])
        # logs with the same last seal are the same ledger, so only those cut at a commit are verified
        found = opened(crashed.world, path, verified=length in crashed.seals)
        assert found == crashed.expected(length), (length, crashed.durable)
        seen.add(found)
        shutil.rmtree(path.parent)
    assert len(seen) == COMMITS + 1


def _garbage(crashed: Crashed) -> Iterator[tuple[str, bytes]]:
    """Bytes after the last durable commit, which must be ignored."""
    log, frame, rng = crashed.log, crashed.frame, random.Random(7)
    for size in (1, FRAME_HEADER, frame - 1, frame, 3 * frame + 5):
        yield f"random {size}", log + rng.randbytes(size)
        yield f"zeros {size}", log + bytes(size)
    yield "an old frame again", log + log[HEADER : HEADER + frame]
    yield "the last frame again", log + log[-frame:]
    stale = bytearray(log[-frame:])
    stale[8:16] = rng.randbytes(8)
    yield "a frame of an earlier log", log + bytes(stale)


def test_garbage_after_the_log_is_ignored(crashed: Crashed, tmp_path: Path) -> None:
    for number, (what, log) in enumerate(_garbage(crashed)):
        path = crashed.with_log(tmp_path / str(number), log)
        assert opened(crashed.world, path) == crashed.expected(len(crashed.log)), what


def _torn(crashed: Crashed) -> Iterator[tuple[str, bytes]]:
    """Damaged frames of the last commit, whose sync had not returned."""
    log, before, rng = crashed.log, crashed.durable[-2], random.Random(8)
    frame = crashed.frame
    for at in range(before, len(log), frame):
        yield f"{at}: zeros", log[:at] + bytes(frame) + log[at + frame :]
        half = log[: at + frame // 2] + bytes(frame - frame // 2) + log[at + frame :]
        if half != log:  # a page that SQLite filled less than half is unchanged
            yield f"{at}: half", half
        for _ in range(BITS):
            position, bit = rng.randrange(at, at + frame), 1 << rng.randrange(8)
            yield (
                f"{position}: bit {bit}",
                log[:position] + bytes([log[position] ^ bit]) + log[position + 1 :],
            )


def test_a_torn_commit_is_dropped_as_a_whole(crashed: Crashed, tmp_path: Path) -> None:
    before = crashed.expected(crashed.durable[-2])
    for number, (what, log) in enumerate(_torn(crashed)):
        path = crashed.with_log(tmp_path / str(number), log)
        # ledgers with the same last seal are the same, so one is verified
        assert opened(crashed.world, path, verified=number == 0 or IS_LONG) == before, what


def test_verify_with_a_noted_head_finds_a_durable_commit_lost_to_corruption(
    crashed: Crashed, tmp_path: Path
) -> None:
    """SQLite ends the log at the first damaged frame, so the file alone cannot show that there was more."""
    at = crashed.durable[-4] + FRAME_HEADER + 100
    log = crashed.log
    path = crashed.with_log(tmp_path / "rotten", log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :])
    assert opened(crashed.world, path) == crashed.expected(at)
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("BEGIN")
        noted = Head(*crashed.expected(len(log)))
        told = list(verify(conn, Owner(crashed.world.account.address, crashed.world.terms.network), noted))
        assert [one.table for one in told if isinstance(one, AuditFinding)] == ["seals"]


def test_a_log_without_its_database_or_a_corrupt_database_is_refused(crashed: Crashed, tmp_path: Path) -> None:
    path = crashed.with_log(tmp_path / "lost", crashed.log)
    path.unlink()
    with pytest.raises(Refused, match="ledger_missing"):
        require_ledger(path)
    whole = (crashed.files / "ledger.db").read_bytes()
    for number, raw in enumerate((os.urandom(len(whole)), b"no database at all", bytes(len(whole)))):
        path = crashed.with_log(tmp_path / str(number), b"")
        path.write_bytes(raw)
        with pytest.raises(Refused, match=r"store_failed|ledger_missing"):
            opened(crashed.world, path)


async def test_the_agent_goes_on_after_a_power_cut_truncates_the_log(tmp_path: Path) -> None:
    """The power fails while the agent writes a cancel."""
    (tmp_path / "marks").mkdir()
    with crash_world(tmp_path) as world:
        world.fund(*[50 * ADA] * UTXOS)
        script = Script(world, tmp_path / "marks")
        before = 0

        def power_goes(name: str) -> None:
            nonlocal before
            log = tmp_path / "ledger.db-wal"
            if name == "after cancel":
                world.guard.gone = True
                copy_files(tmp_path, tmp_path / "kept")
                cut = before + (log.stat().st_size - before) // 2
                os.truncate(tmp_path / "kept" / "ledger.db-wal", cut)
                raise sqlite3.OperationalError("the power is gone")
            before = log.stat().st_size

        disk = Disk(tmp_path, after=power_goes)
        async with world.run(checkpoint=disk, providers={"devnet": world.guard.url}) as run:
            with pytest.raises(Dead):
                await script.drive(run, lambda: not world.guard.gone)
        world.guard.gone = False
        world.in_folder(tmp_path / "kept")
        async with world.run(providers={"devnet": world.guard.url}) as run:
            await script.drive(run)
            assert_done(world, run, script)
