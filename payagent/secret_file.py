"""Read and write secret files, and check that other users cannot read or change files.

A secret is read at use, and only from a file that no other user could have read or written.
Never: keeps a secret; quotes one in an error.
"""

import grp
import os
import pwd
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from payagent.core.problems import Refused

SECRET_BYTES_MAX = 4096
_LINKS_MAX = 40  # the kernel's limit
_IN_HEADER = re.compile(r"[!-~]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretFile:
    """The path of a secret. `private`: only its owner may have access."""

    path: Path
    private: bool


def read_secret_file(path: Path, *, private: bool = True) -> str:
    """Read a secret without its final line end. `private`: only the owner may have access to the file.

    Refused `config_invalid` if it is missing, open to others, empty, or not a short UTF-8 text.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for a writer
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            raw = file.read(SECRET_BYTES_MAX + 1) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise Refused(
            "config_invalid",
            f"the secret file {path} cannot be read: {error.strerror}",
            fix="Run this as the file's owner. If the daemon reads the file, give it to the daemon's user: "
            f"`chown payagent {path}`."
            if isinstance(error, PermissionError)
            else None,
        ) from None
    if private and status.st_mode & 0o077:
        raise open_to_others(f"the secret file {path} is open to others", f"chmod 600 {path}")
    if private and status.st_uid not in (0, os.geteuid()):
        raise of_another_user(f"the secret file {path} belongs to another user", status.st_uid)
    with suppress(UnicodeDecodeError):
        secret = raw.decode().removesuffix("\n").removesuffix("\r")
        if secret and len(raw) <= SECRET_BYTES_MAX:
            return secret
    raise Refused("config_invalid", f"the secret file {path} is not a text of 1 to {SECRET_BYTES_MAX} bytes")


def open_to_others(detail: str, command: str) -> Refused:
    """`config_invalid` with the command that mends it."""
    return Refused("config_invalid", f"{detail}; run: {command}", fix=f"Run: {command}")


def of_another_user(detail: str, uid: int) -> Refused:
    """`config_invalid` with the start of the command that does the same as that user."""
    owner = next((row.pw_name for row in pwd.getpwall() if row.pw_uid == uid), "USER")
    return Refused(
        "config_invalid", detail, fix=f"Run it as that user: `runuser -u {owner} -- {sys.argv[0]} ...`."
    )


def read_header_secret(path: Path) -> str:
    """Read a secret for an HTTP header: one text of visible ASCII."""
    secret = read_secret_file(path)
    if not _IN_HEADER.fullmatch(secret):
        raise Refused("config_invalid", f"the secret file {path} must hold one text of visible ASCII")
    return secret


def make_secret_file(path: Path, secret: str) -> None:
    """Create a secret file, durable and private from its first moment.

    Refused `config_invalid` if it exists or cannot be created.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
            file.write(secret + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        raise Refused("config_invalid", f"the secret file {path} cannot be created: {error.strerror}") from None


def put_in_place(new: Path, path: Path) -> None:
    """Replace a file by another, atomically and durably. Raises OSError."""
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def require_private(path: Path) -> str:
    """Check that only the owner has access; return the path and mode. Refused `config_invalid`."""
    status = path.stat()
    mode, expected = stat.S_IMODE(status.st_mode), 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
    if mode & 0o077:
        raise open_to_others(f"{path} is open to others ({mode:04o})", f"chmod {expected:o} {path}")
    return f"{path} ({mode:04o})"


def steps_to(path: Path) -> Iterator[Path]:
    """Yield every folder, link and file on the way to a path, by real name. The path need not exist."""
    here, left, links = Path("/"), list(path.absolute().parts[::-1]), 0
    while left and links <= _LINKS_MAX:
        name = left.pop()
        step = here.parent if name == ".." else here / name
        yield step
        if step.is_symlink():
            left += step.readlink().parts[::-1]
            links += 1
        else:
            here = step


def require_unchanged_by_others(path: Path) -> str:
    """Check that no other user can change or replace a file that sets limits; return path and mode.

    Refused `config_invalid`. In a sticky folder only owners can rename their files, so its mode does not matter.
    """
    for step in steps_to(path):
        try:
            status = step.lstat()
        except OSError as error:
            raise Refused("config_invalid", f"{step} cannot be read: {error.strerror}") from None
        problem = f"{path} can be changed by others"
        if status.st_uid not in (0, os.geteuid()):
            raise open_to_others(
                f"{problem}: {step} belongs to another user (uid {status.st_uid})",
                f"chown {'root' if os.geteuid() == 0 else os.geteuid()} {step}",
            )
        is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        is_protected = stat.S_ISLNK(status.st_mode) or is_sticky
        for_others = stat.S_IWOTH | (0 if _is_private(status.st_gid) else stat.S_IWGRP)
        if not is_protected and status.st_mode & for_others:
            raise open_to_others(f"{problem} of this machine", f"chmod go-w {step}")
    return f"{path} ({stat.S_IMODE(path.stat().st_mode):04o})"


def _is_private(gid: int) -> bool:
    """Whether a group is this user's alone. Many systems give each user one, with write access to new folders."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (group.gr_gid, group.gr_name) == (user.pw_gid, user.pw_name) and {*group.gr_mem} <= {user.pw_name}


def require_out_of_reach(paths: Iterable[Path], folders: Iterable[Path]) -> None:
    """Refuse `config_invalid` if a path leads through a folder where the daemon can write.

    A compromised daemon could otherwise set the limits of its next start there.
    """
    places = [folder.resolve() for folder in folders]
    for path in paths:
        for place in places:
            if any(step != place and step.is_relative_to(place) for step in steps_to(path)):
                raise Refused(
                    "config_invalid",
                    f"the config {path} lies in {place}, where the daemon writes: a compromised daemon could set "
                    "the limits of its next start; move the config to a folder of its own",
                )


def require_own_folder(folder: Path) -> str:
    """Check that only the owner can add files to api.socket's folder; return path and mode.

    Refused `config_invalid`. Another user's socket could otherwise answer for ours, even in a sticky folder.
    """
    status = folder.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise of_another_user(f"{folder}, the folder of api.socket, belongs to another user", status.st_uid)
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise open_to_others(
            f"{folder}, the folder of api.socket, can be written by others: choose another one",
            f"chmod go-w {folder}",
        )
    return f"{folder} ({stat.S_IMODE(status.st_mode):04o})"
