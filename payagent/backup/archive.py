"""The backup format: a plain tar of manifest.json, keystore.json and ledger.db, in this order and nothing else.

The reader follows no path, link, extension or special type of tar. It writes only what the manifest announced: it
checks a member's name and size before reading, and its SHA-256 afterwards.

Never: knows what the members mean.
"""

import hashlib
import os
import stat
import tarfile
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from payagent.core import strict_json
from payagent.core.problems import Refused

VERSION: Final = 1
MANIFEST, KEYSTORE, LEDGER = "manifest.json", "keystore.json", "ledger.db"
KEYSTORE_BYTES_MAX = 32_768
_MANIFEST_BYTES_MAX = 4096
_BLOCK_BYTES = tarfile.BLOCKSIZE
_PIECE_BYTES = 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Member(_Part):
    size: int
    sha256: str


class Manifest(_Part):
    """What a backup says about itself.

    `head` is the ledger's newest seal, as `payagent ledger verify` prints it. Open payments may still change.
    """

    version: Literal[1]
    network: str
    address: str
    made_at_ms: Annotated[int, Field(ge=0, lt=2**48)]
    head: str
    payments: int
    open_payments: int
    keystore: Member
    ledger: Member


def invalid(detail: str) -> Refused:
    return Refused("file_invalid/backup", detail)


def measure(path: Path) -> Member:
    with path.open("rb") as file:
        return Member(size=path.stat().st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def pack(folder: Path, manifest: Manifest, target: Path) -> None:
    """Write keystore and ledger of a folder as a durable backup file."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="ascii")
    with _create(target) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for name in (MANIFEST, KEYSTORE, LEDGER):
                info = tarfile.TarInfo(name)
                info.mode, info.mtime = 0o600, manifest.made_at_ms // 1000
                info.size = (folder / name).stat().st_size
                with (folder / name).open("rb") as member:
                    tar.addfile(info, member)
        file.flush()
        os.fsync(file.fileno())


def unpack(source: Path, folder: Path) -> Manifest:
    """Write a backup's keystore and ledger into a folder, durably. Raises `file_invalid` on any mismatch."""
    with _open(source) as file:
        manifest = _read_manifest(_read(file, MANIFEST, _MANIFEST_BYTES_MAX))
        if manifest.keystore.size > KEYSTORE_BYTES_MAX:
            raise invalid(f"its {KEYSTORE} is too large for a keystore")
        for name, member in ((KEYSTORE, manifest.keystore), (LEDGER, manifest.ledger)):
            _copy(file, name, member, folder / name)
        _require_end(file)
    return manifest


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def _open(path: Path) -> BinaryIO:
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
    except OSError as error:
        raise Refused(
            "file_invalid/backup",
            f"{path} cannot be read: {error.strerror}",
            fix="Check the file's name, and make it readable for this user.",
        ) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise invalid(f"{path} is not a file")
    return file


def _size_of(file: BinaryIO, name: str) -> int:
    """Read the header of the next member, which must be the plain file `name`, with all of its content."""
    try:
        info = tarfile.TarInfo.frombuf(file.read(_BLOCK_BYTES), "ascii", "strict")
    except (tarfile.HeaderError, ValueError):
        raise invalid(f"{name} is not in its place: the file is not a backup, or is truncated") from None
    if info.name != name or info.type != tarfile.REGTYPE:
        raise invalid(f"another member is in the place of {name}")
    if not 0 <= info.size <= os.fstat(file.fileno()).st_size - file.tell():
        raise invalid(f"{name} is truncated")
    return info.size


def _skip_padding(file: BinaryIO, size: int) -> None:
    if any(file.read(-size % _BLOCK_BYTES)):
        raise invalid("it has data beside its members")


def _read(file: BinaryIO, name: str, bytes_max: int) -> bytes:
    size = _size_of(file, name)
    if size > bytes_max:
        raise invalid(f"{name} is too large")
    content = file.read(size)
    _skip_padding(file, size)
    return content


def _copy(file: BinaryIO, name: str, member: Member, target: Path) -> None:
    if (size := _size_of(file, name)) != member.size:
        raise invalid(f"{name} has {size} bytes, the manifest says {member.size}")
    digest, left = hashlib.sha256(), size
    with _create(target) as copy:
        while left and (piece := file.read(min(left, _PIECE_BYTES))):
            digest.update(piece)
            copy.write(piece)
            left -= len(piece)
        copy.flush()
        os.fsync(copy.fileno())
    if left or digest.hexdigest() != member.sha256:
        raise invalid(f"{name} does not match its SHA-256 in the manifest")
    _skip_padding(file, size)


def _require_end(file: BinaryIO) -> None:
    """Require two blocks of zeros, and zeros up to a whole record, as a tar ends."""
    rest = file.read(2 * tarfile.RECORDSIZE)
    if len(rest) < 2 * _BLOCK_BYTES:
        raise invalid("its end is missing: it is truncated")
    if any(rest) or file.read(1):
        raise invalid("it has data beside its members")


def _read_manifest(raw: bytes) -> Manifest:
    try:
        return Manifest.model_validate(strict_json.loads(raw))
    except Refused as refused:
        raise invalid(f"{MANIFEST}: {refused.detail}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        raise invalid(f"{MANIFEST}: {'.'.join(map(str, fault['loc']))[:80]}: {fault['msg']}") from None
