"""seccomp filters of system calls, permanent for this process and its children (Linux 3.5), and prctl.

The kernel runs a filter at each call, over `struct seccomp_data`. The filter sees numbers, not the memory behind a
pointer (docs.kernel.org, seccomp_filter). The signer and the daemon each install one.
Never: knows which process is filtered; continues if the kernel refuses the filter.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping, Sequence

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
_JUMP_IF_AT_LEAST = 0x35
ALLOW, DENY, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x80000000  # a denied call fails with EPERM
_AT_NUMBER, _AT_ARCHITECTURE, _AT_ARGUMENTS = 0, 4, 16
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 4, 38, 22
_MODE_FILTER = 2
_X32 = 0x40000000
"""The call numbers of x32 on x86_64 begin here. No other architecture has numbers this high."""

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

Step = tuple[int, int, int, int]
"""A BPF step: operation, jump if true, jump if false, value."""

Calls = Mapping[str, tuple[int, ...]]
"""Call numbers by the kernel's name of the architecture."""

libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def here(calls: Calls) -> tuple[int, ...]:
    """Return the numbers for this machine. Raises OSError if they are not known."""
    machine = platform.machine()
    if machine not in calls:
        raise OSError(errno.ENOSYS, f"the system call numbers of {machine} are not known")
    return calls[machine]


def when(number: int, argument: int, values: Sequence[int], then: int, otherwise: int) -> list[Step]:
    """Build steps that decide one call, by whether an argument (the first is 0) is one of `values`.

    Only the lower 32 bits of the argument are compared, because the kernel reads an int.
    """
    jumps = [(JUMP_IF_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    inside = [(LOAD, 0, 0, _AT_ARGUMENTS + 8 * argument), *jumps, (RETURN, 0, 0, otherwise), (RETURN, 0, 0, then)]
    return [(JUMP_IF_EQUAL, 0, len(inside), number), *inside]


def among(calls: Calls, then: int, otherwise: int) -> list[Step]:
    """Build steps that decide by whether the call is one of these. Raises OSError on an unknown machine."""
    numbers = here(calls)
    jumps = [(JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    return [*jumps, (RETURN, 0, 0, otherwise), (RETURN, 0, 0, then)]


def install(steps: Sequence[Step]) -> None:
    """Install a filter for this thread and its children. `steps` begin with the call number loaded.

    A call of another architecture kills the process. A call of x32 is denied.
    """
    program = [
        (LOAD, 0, 0, _AT_ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, _ARCHITECTURES[platform.machine()]),
        (RETURN, 0, 0, _KILL),
        (LOAD, 0, 0, _AT_NUMBER),
        (_JUMP_IF_AT_LEAST, 0, 1, _X32),
        (RETURN, 0, 0, DENY),
        *steps,
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in program)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(_Program(len(program), code)))


def prctl(option: int, value: int, more: object = None) -> None:
    """Set an option of this process. Raises OSError if the kernel refuses."""
    zero = ctypes.c_ulong(0)
    checked(libc.prctl(option, ctypes.c_ulong(value), zero if more is None else more, zero, zero))


def checked(result: int) -> int:
    """Return what a call of `libc` returned. Raises OSError if it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
