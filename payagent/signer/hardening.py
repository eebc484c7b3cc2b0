"""What the signer's process gives up, by the kernel's own means, called as they are: prctl, setrlimit, mlockall.

`before_the_secret` is for the first moment: what is read after it can be dumped or traced by nobody but root.
`for_good` leaves a process that can do sums and talk on the line that it has: no new file, socket, program or
process.
May import: the standard library, seccomp. Never: goes on when a step that must hold does not; the others are told.
"""

import ctypes
import errno
import os
import resource
import signal
from pathlib import Path

from payagent import seccomp
from payagent.seccomp import ALLOW, DENY, JUMP_IF_EQUAL, RETURN

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_MCL_CURRENT = 1

# recvfrom, sendto, close, poll, brk, mmap, munmap, mremap, mprotect, madvise, futex, rt_sigaction, rt_sigprocmask,
# rt_sigreturn, restart_syscall, clock_gettime, exit, exit_group
_CALLS = {
    "x86_64": (45, 44, 3, 7, 12, 9, 11, 25, 10, 28, 202, 13, 14, 15, 219, 228, 60, 231),
    "aarch64": (207, 206, 57, 73, 214, 222, 215, 216, 226, 233, 98, 134, 135, 139, 128, 113, 93, 94),
}
"""The calls that stay allowed."""

_NONE = ctypes.c_ulong(0)
_libc = ctypes.CDLL(None, use_errno=True)


def before_the_secret() -> None:
    """No core dump, no tracing, no reading of this memory by others of the same user; and the end with our parent.

    Raises OSError when a step is not taken.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def require_parent(pid: int) -> None:
    """End when the parent is another: the one that we are to end with has gone before it could be said so."""
    if os.getppid() != pid:
        raise OSError(errno.ESRCH, "the process that it is to end with is gone")


def require_untraced() -> None:
    """End when somebody traces us since before it could be forbidden: whoever does reads all."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("TracerPid:") and line.split()[1] != "0":
            raise OSError(errno.EPERM, "another process traces the signer")


def for_good() -> list[str]:
    """Give up, for good, all that is not needed to sign. Returns what this machine did not let us give up.

    Raises OSError when the calls cannot be filtered: a signer that can open files and sockets is not one.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends us, when it has nothing left to sign
    missing = []
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    try:
        _lock_memory()
    except OSError:
        missing.append("memory kept out of swap")
    _filter_calls()
    return missing


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), _NONE, _NONE, _NONE) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _lock_memory() -> None:
    if _libc.mlockall(_MCL_CURRENT) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _filter_calls() -> None:
    """What is not in the list is answered with EPERM."""
    numbers = seccomp.here(_CALLS)
    allowed = [(JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    seccomp.install([*allowed, (RETURN, 0, 0, DENY), (RETURN, 0, 0, ALLOW)])
