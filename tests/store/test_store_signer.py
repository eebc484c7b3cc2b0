"""The signer's own record: whatever tears a write, the one before or the one after is read, and nothing else."""

from pathlib import Path

import pytest

from payagent.core.problem import Refused
from payagent.store.signer import Signed, SignerFile


def signed(number: int) -> Signed:
    return Signed(number, f"{number:02x}" * 32, 1_000 + number)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signer.json"


@pytest.fixture
def record(path: Path) -> SignerFile:
    return SignerFile(path)


def test_another_process_reads_what_was_written_last(path: Path, record: SignerFile) -> None:
    assert record.read() is None
    for number in range(1, 8):
        record.write(signed(number))
        assert SignerFile(path).read() == record.read() == signed(number)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("last", [2, 3, 10, 11])
def test_a_write_that_is_torn_anywhere_leaves_the_one_before(path: Path, record: SignerFile, last: int) -> None:
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


def test_a_process_goes_on_where_another_left_off(path: Path) -> None:
    for number in range(1, 6):
        SignerFile(path).write(signed(number))
        assert SignerFile(path).read() == signed(number)


@pytest.mark.parametrize("how", ["another file", "no file"])
def test_what_was_put_in_its_place_is_written_to(path: Path, record: SignerFile, how: str) -> None:
    record.write(signed(1))
    record.write(signed(2))
    copy = path.read_bytes()
    path.unlink()
    if how == "another file":
        path.write_bytes(copy)
    record.write(signed(3))
    assert SignerFile(path).read() == signed(3)


def test_a_record_of_one_line_is_read(path: Path) -> None:
    path.write_text(f'{{"attempts": 7, "tx_id": "{"07" * 32}", "ttl_slot": 1007}}\n')
    assert SignerFile(path).read() == signed(7)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[]\n[]\n", b'{"attempts": 1}\n', b" \n \n"])
def test_what_nobody_of_ours_wrote_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(Refused, match="cannot be read as the signer's record"):
        SignerFile(path).read()


def test_a_line_that_was_changed_by_hand_does_not_count(path: Path, record: SignerFile) -> None:
    record.write(signed(1))
    record.write(signed(2))
    path.write_bytes(path.read_bytes().replace(b'"attempts": 2', b'"attempts": 9'))
    assert SignerFile(path).read() == signed(1)


def test_closing_leaves_nothing_open(path: Path, record: SignerFile) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(1, 4):
        path.unlink(missing_ok=True)
        record.write(signed(number))
    record.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
