"""Hardens the signer's process with prctl, setrlimit, mlockall and seccomp.

`before_the_secret` runs first: after it, only root can dump or trace the process. `for_good` then leaves a process
that can only compute and use its socket, without new files, sockets, programs or processes.

Never: continues after a required step failed. Optional steps that failed are returned.
"""

import errno
import os
import resource
import signal
from pathlib import Path

from payagent import seccomp
from payagent.seccomp import (
    ALLOW,
    DENY,
    PR_SET_DUMPABLE,
    PR_SET_NO_NEW_PRIVS,
    PR_SET_PDEATHSIG,
    checked,
    libc,
    prctl,
)

_MCL_CURRENT = 1

# recvfrom, sendto, close, poll, brk, mmap, munmap, mremap, mprotect, madvise, futex, rt_sigaction, rt_sigprocmask,
# rt_sigreturn, restart_syscall, clock_gettime, exit, exit_group
_CALLS = {
    "x86_64": (45, 44, 3, 7, 12, 9, 11, 25, 10, 28, 202, 13, 14, 15, 219, 228, 60, 231),
    "aarch64": (207, 206, 57, 73, 214, 222, 215, 216, 226, 233, 98, 134, 135, 139, 128, 113, 93, 94),
}
"""The numbers of the allowed system calls, by architecture. All others fail with EPERM."""


def before_the_secret() -> None:
    """Forbid core dumps, tracing and memory reads by the same user, and make the process end with its parent.

    Raises OSError if a step fails.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(PR_SET_DUMPABLE, 0)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def require_parent(pid: int) -> None:
    """Raise OSError if the parent is no longer `pid`: it ended before `before_the_secret` tied us to it."""
    if os.getppid() != pid:
        raise OSError(errno.ESRCH, "the parent process has ended")


def require_untraced() -> None:
    """Raise OSError if a process already traces us, because it could read the secret."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("TracerPid:") and line.split()[1] != "0":
            raise OSError(errno.EPERM, "another process traces the signer")


def for_good() -> list[str]:
    """Permanently drop everything that signing does not need. Return the protections that could not be set.

    Raises OSError if system calls cannot be filtered: the signer must not be able to open files or sockets.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends this process when nothing is left to sign
    missing = []
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))
    try:
        checked(libc.mlockall(_MCL_CURRENT))
    except OSError:
        missing.append("memory kept out of swap")
    seccomp.install(seccomp.among(_CALLS, ALLOW, DENY))
    return missing
