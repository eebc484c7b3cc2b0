"""The signer's record file: after a torn write either the old or the new record is read."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from payagent.core.problems import Refused
from payagent.store.db.signer_record import DatabaseMark, LastSigned, SignerFile


def signed(number: int) -> LastSigned:
    return LastSigned(number, f"{number:02x}" * 32, 1_000 + number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signer.json"


@pytest.fixture
def record(path: Path) -> SignerFile:
    return SignerFile(path)


def test_another_process_reads_the_last_written_record(path: Path, record: SignerFile) -> None:
    assert record.read() is None
    for number in range(1, 8):
        record.write(signed(number))
        assert SignerFile(path).read() == record.read() == signed(number)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("last", [2, 3, 10, 11])
def test_a_torn_write_leaves_the_old_or_the_new_record(path: Path, record: SignerFile, last: int) -> None:
    for number in range(1, last):
        record.write(signed(number))
    before = path.read_bytes()
    record.write(signed(last))
    after = path.read_bytes()
    told = {}
    changed = [at for at in range(len(after)) if after[at] != before[at]]
    for cut in range(changed[0], changed[-1] + 2):
        for torn in (after[:cut] + before[cut:], before[:cut] + after[cut:]):
            path.write_bytes(torn)
            found = SignerFile(path).read()
            assert found in (signed(last - 1), signed(last))
            told[found] = told.get(found, 0) + 1
    assert set(told) == {signed(last - 1), signed(last)}


@pytest.mark.parametrize("call", ["pwrite", "fdatasync", "short pwrite"])
@pytest.mark.parametrize("last", [2, 3])
def test_failed_writes_touch_only_one_of_the_two_slots(
    path: Path, record: SignerFile, last: int, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, last):
        record.write(signed(number))
    before = path.read_bytes()
    really = os.pwrite

    def fails(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no room")

    def is_short(handle: int, data: bytes, at: int) -> int:
        return really(handle, data[:50], at)

    with monkeypatch.context() as patched:
        patched.setattr(os, call.split()[-1], is_short if call.startswith("short") else fails)
        for _ in range(3):
            with pytest.raises(OSError, match=r"no room|only in part"):
                record.write(signed(last))
            assert record.read() == signed(last - 1)
            assert SignerFile(path).read() in (signed(last - 1), signed(last))
    after = path.read_bytes()
    assert sum(after[at : at + 4096] != before[at : at + 4096] for at in (0, 4096)) <= 1
    record.write(signed(last))
    assert SignerFile(path).read() == signed(last)


def test_a_new_process_continues_where_another_left_off(path: Path) -> None:
    for number in range(1, 6):
        SignerFile(path).write(signed(number))
        assert SignerFile(path).read() == signed(number)


@pytest.mark.parametrize("how", ["another file", "no file"])
def test_a_replaced_or_deleted_file_is_written_to_again(path: Path, record: SignerFile, how: str) -> None:
    record.write(signed(1))
    record.write(signed(2))
    copy = path.read_bytes()
    path.unlink()
    if how == "another file":
        path.write_bytes(copy)
    record.write(signed(3))
    assert SignerFile(path).read() == signed(3)


@pytest.mark.parametrize("size", [0, 100, 4096])
@pytest.mark.parametrize("last", [4, 5])
def test_a_file_truncated_by_somebody_else_shows_the_next_record_written(
    path: Path, record: SignerFile, size: int, last: int
) -> None:
    """The old content is lost, and with it the line end that separates the two slots."""
    for number in range(1, last):
        record.write(signed(number))
    with path.open("r+b") as file:
        file.truncate(size)
    record.write(signed(last))
    assert SignerFile(path).read() == signed(last)


@pytest.mark.parametrize("last", [2, 3])
@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\n", b"{"])
def test_a_damaged_slot_leaves_the_other_readable(
    path: Path, record: SignerFile, last: int, filling: bytes
) -> None:
    for number in range(1, last + 1):
        record.write(signed(number))
    written = path.read_bytes()
    path.write_bytes(filling * 4096 + written[4096:])
    assert SignerFile(path).read() == signed(2)
    path.write_bytes(written[:4096] + filling * 4096)
    assert SignerFile(path).read() == signed(3 if last == 3 else 1)


def test_a_record_in_the_old_one_line_form_is_read(path: Path) -> None:
    path.write_text(f'{{"attempts": 7, "tx_id": "{"07" * 32}", "ttl_slot": 1007}}\n')
    assert SignerFile(path).read() == signed(7)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]\n[]\n", b'{"attempts": 1}\n', b" \n \n"])
def test_a_file_that_is_not_a_signers_record_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(Refused, match="cannot be read as the signer's record"):
        SignerFile(path).read()


def test_a_new_record_supersedes_a_one_line_file_copied_over_it(path: Path, record: SignerFile) -> None:
    """The copy is written into the same file, so its inode stays."""
    for number in range(1, 4):
        record.write(signed(number))
    path.write_text(f'{{"attempts": 1, "tx_id": "{"01" * 32}", "ttl_slot": 1001}}\n')
    record.write(signed(4))
    assert SignerFile(path).read() == signed(4)


def test_a_record_changed_by_hand_is_ignored(path: Path, record: SignerFile) -> None:
    record.write(signed(1))
    record.write(signed(2))
    path.write_bytes(path.read_bytes().replace(b'"attempts": 2', b'"attempts": 9'))
    assert SignerFile(path).read() == signed(1)


def test_closing_leaves_no_file_open(path: Path, record: SignerFile) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1, 4):
        path.unlink(missing_ok=True)
        record.write(signed(number))
    record.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_database_of_the_attempt_is_read_back_and_checked(path: Path, record: SignerFile) -> None:
    mark = DatabaseMark("7713746154079813402", 2, 40, "ab" * 32)
    record.write(signed(1))
    record.write(replace(signed(2), database=mark))
    found = SignerFile(path).read()
    assert found == signed(2)
    assert found is not None
    assert found.database == mark
    path.write_bytes(path.read_bytes().replace(b'"timeline": 2', b'"timeline": 1'))
    assert SignerFile(path).read() == signed(1)
