"""The daemon's sandbox: for the rest of its life the process cannot reach the key.

`enter_sandbox` hides files with Landlock. `close_ways_out` denies system calls with seccomp. Otherwise the daemon
could type commands into its terminal, or send them to tmux or a similar program by a Unix socket.

The signer and the daemon run as the same user, so file modes do not separate them. Landlock (Linux 5.13) does, and
no code in the process can remove it. A sandboxed process also cannot read the memory of one outside. Landlock has
no "everything except". So the rules list what may be read: single files in the folders above a hidden file, and
whole folders elsewhere. A file created later in one of those few folders cannot be read.
Never: starts while other threads run; reports a file as hidden that can be read by a second name.
"""

import ctypes
import os
import resource
import socket
import tempfile
import termios
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from payagent import seccomp
from payagent.seccomp import checked, libc

ROTATING = Path("/etc")
"""Programs replace files here that the daemon must reread, such as resolv.conf, so no file in it can be hidden."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on all architectures
_VERSION, _PATH_BENEATH = 1, 1

_WRITE_FILE, _READ_FILE, _TRUNCATE = 1 << 1, 1 << 2, 1 << 14
_REMOVE_FILE = 1 << 5
_MAKE_AND_REMOVE = sum(1 << bit for bit in range(4, 13))
_TRUNCATE_SINCE = 3
_SCOPES_SINCE, _SCOPE_ABSTRACT_UNIX_SOCKET = 6, 1
_DEVICES = (Path("/dev/null"), Path("/dev/tty"))

# ioctl, socket, socketpair, io_uring_setup
_CALLS = {"x86_64": (16, 41, 53, 425), "aarch64": (29, 198, 199, 425)}
_TIOCLINUX = 0x541C  # pastes text into a console


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """The files that are hidden from the daemon, and for those that cannot be, the reason and the fix."""

    hidden: tuple[Path, ...]
    open: tuple[str, ...]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def version() -> int:
    """Return the kernel's Landlock version; 0 if it has none or does not use it."""
    return max(int(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))), 0)


def plan(always: Iterable[Path], passphrase: Path | None, read_anew: Iterable[Path], kernel: int) -> SandboxPlan:
    """Plan the hidden files: those of `always` that exist, and the passphrase file if that blocks nothing else.

    `read_anew` are files that the daemon rereads while it runs, so files that replace them must be readable.
    `kernel` is the result of `version`.
    """
    if not kernel:
        why = "the daemon can read every secret file: this kernel has no Landlock (Linux 5.13), or it is disabled"
        return SandboxPlan((), (why,))
    existing = [real for path in always if (real := path.resolve()).exists()]
    reasons = {real: _second_name(real) for real in existing}
    if passphrase is not None and (real := passphrase.resolve()).exists():
        folders = {ROTATING, *(path.resolve().parent for path in read_anew)} - _above(existing)
        reasons[real] = _second_name(real) or _shared(real, folders)
    hidden = tuple(path for path, why in reasons.items() if why is None)
    return SandboxPlan(hidden, tuple(why for why in reasons.values() if why is not None))


def _second_name(path: Path) -> str | None:
    if path.stat().st_nlink == 1:
        return None
    return f"the daemon can read {path}: it has another name (a hard link); remove that name"


def _shared(path: Path, folders: Iterable[Path]) -> str | None:
    folder = next((folder for folder in folders if path.is_relative_to(folder)), None)
    if folder is None:
        return None
    return (
        f"the daemon can read {path}: in {folder} it must read files that are replaced; move it to a folder of "
        "its own elsewhere"
    )


def _above(paths: Iterable[Path]) -> set[Path]:
    return {folder for path in paths for folder in path.parents}


def keep_to_itself() -> None:
    """Forbid core dumps of this process, and access to its memory by other processes of its user.

    The daemon holds tokens of merchants and providers. Their files are private too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seccomp.prctl(seccomp.PR_SET_DUMPABLE, 0)


def close_ways_out() -> None:
    """Deny calls that type into a terminal, or that create a Unix socket which could be connected.

    A filter cannot see the target of `connect`, so the socket itself is denied. asyncio still gets its stream
    pairs, which are connected to each other for good. io_uring is denied because it creates sockets without a
    system call. This holds for this thread and its children, for good. Raises OSError if the kernel refuses.
    """
    _require_one_thread()
    ioctl, make, make_pair, io_uring_setup = seccomp.here(_CALLS)
    streams = (socket.SOCK_STREAM | socket.SOCK_CLOEXEC,)
    seccomp.install(
        [
            *seccomp.when(ioctl, 1, (termios.TIOCSTI, _TIOCLINUX), seccomp.DENY, seccomp.ALLOW),
            *seccomp.when(make, 0, (socket.AF_UNIX,), seccomp.DENY, seccomp.ALLOW),
            *seccomp.when(make_pair, 1, streams, seccomp.ALLOW, seccomp.DENY),
            (seccomp.JUMP_IF_EQUAL, 0, 1, io_uring_setup),
            (seccomp.RETURN, 0, 0, seccomp.DENY),
            (seccomp.RETURN, 0, 0, seccomp.ALLOW),
        ]
    )


def _require_one_thread() -> None:
    if threading.active_count() != 1:
        raise RuntimeError("a thread that is already running would not be sandboxed")


def temporary(hidden: Iterable[Path]) -> list[Path]:
    """Return the temporary folders of Python (first) and SQLite that contain no hidden file."""
    places = (Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp"))  # noqa: S108  folders, not files
    folders = [folder for folder in map(Path.resolve, places) if folder.is_dir()]
    return [folder for folder in dict.fromkeys(folders) if not any(path.is_relative_to(folder) for path in hidden)]


def enter_sandbox(hidden: Iterable[Path], folders: Iterable[Path], emptied: Iterable[Path]) -> None:
    """Make hidden files unreadable, and everything outside `folders` read-only.

    In the folders of `emptied`, files can only be removed. This holds for this thread and its children, for good.
    Raises OSError if the kernel refuses.
    """
    _require_one_thread()
    hidden, kernel = frozenset(hidden), version()
    writing = _WRITE_FILE | _MAKE_AND_REMOVE | (_TRUNCATE if kernel >= _TRUNCATE_SINCE else 0)
    handled = (ctypes.c_uint64 * 3)(_READ_FILE | writing, 0, _SCOPE_ABSTRACT_UNIX_SOCKET)  # files, ports, scopes
    size = ctypes.c_size_t(24 if kernel >= _SCOPES_SINCE else 8)
    rules = checked(libc.syscall(_CREATE_RULESET, ctypes.byref(handled), size, ctypes.c_uint32(0)))
    try:
        _let_read(rules, Path("/"), _above(hidden), hidden)
        for folder in folders:
            _allow(rules, folder.resolve(), writing)
        for folder in emptied:
            _allow(rules, folder.resolve(), _REMOVE_FILE)
        for device in _DEVICES:
            _allow(rules, device, _WRITE_FILE)
        seccomp.prctl(seccomp.PR_SET_NO_NEW_PRIVS, 1)
        checked(libc.syscall(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0)))
    finally:
        os.close(rules)


def _let_read(rules: int, folder: Path, above: set[Path], hidden: frozenset[Path]) -> None:
    """Allow reading a folder except hidden files. Folders above a hidden file are handled recursively."""
    inside = {path for path in above if path.parent == folder and path != folder}
    with suppress(PermissionError):  # unlisted content is not needed, except the path to our own files
        inside |= {Path(entry.path) for entry in os.scandir(folder) if not entry.is_symlink()}
    for path in inside - hidden:
        if path in above:
            _let_read(rules, path, above, hidden)
        else:
            _allow(rules, path, _READ_FILE)


def _allow(rules: int, path: Path, accesses: int) -> None:
    """Add a rule for a file, or for a folder with all its present and future content.

    Missing files and files without access are skipped.
    """
    with suppress(FileNotFoundError, PermissionError):
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            rule = _PathBeneath(accesses, handle)
            arguments = ctypes.c_int(rules), ctypes.c_int(_PATH_BENEATH), ctypes.byref(rule), ctypes.c_uint32(0)
            checked(libc.syscall(_ADD_RULE, *arguments))
        finally:
            os.close(handle)
