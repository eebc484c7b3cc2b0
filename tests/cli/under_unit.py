"""Run a command under what config/payagent.service says of memory and system calls: under_unit.py UNIT COMMAND...

As systemd does it, which is not there in a test: no memory that can be written and run, and seccomp for the calls
that the unit's groups leave, by libseccomp. It takes Linux 6.3 and ends with NOT_HERE on less. What the unit says
of files, users and namespaces is not done.
"""

import ctypes
import os
import re
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

NOT_HERE = 77
_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 38, 65, 1
_ALLOW, _DENY, _EQUAL, _NO_SUCH_CALL = 0x7FFF0000, 0x00050000 | 1, 4, -1  # denied is EPERM
_LANDLOCK = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}
"""Older than some libseccomp knows; the numbers are the same on every architecture."""


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("how", ctypes.c_int),
        ("with_what", ctypes.c_uint64),
        ("more", ctypes.c_uint64),
    )


def said(unit: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE)


def calls_left(unit: str) -> set[str]:
    """What the lines of SystemCallFilter leave, one after the other; what systemd itself needs is always there."""
    left = set(calls_of("@default"))
    for line in said(unit, "SystemCallFilter"):
        named = {call for name in line.removeprefix("~").split() for call in calls_of(name)}
        left = left - named if line.startswith("~") else left | named
    return left


@cache
def calls_of(name: str) -> frozenset[str]:
    """A call, or all those of a group."""
    if not name.startswith("@"):
        return frozenset({name})
    command = ["systemd-analyze", "syscall-filter", name]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    names = [line.strip() for line in told[1:]]
    return frozenset().union(*(calls_of(one) for one in names if one and not one.startswith("#")))


def confine(unit: str) -> None:
    """Raises OSError where this machine cannot."""
    seccomp, libc = ctypes.CDLL("libseccomp.so.2"), ctypes.CDLL(None, use_errno=True)
    seccomp.seccomp_init.restype = ctypes.c_void_p
    rules = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(_DENY)))
    for name in calls_left(unit) - {"socket"}:
        number = _LANDLOCK.get(name, seccomp.seccomp_syscall_resolve_name(name.encode()))
        if number != _NO_SUCH_CALL:
            seccomp.seccomp_rule_add_array(rules, ctypes.c_uint32(_ALLOW), number, 0, None)
    (families,) = said(unit, "RestrictAddressFamilies")
    for family in families.split():
        is_it = _Comparison(0, _EQUAL, getattr(socket, family), 0)
        number = seccomp.seccomp_syscall_resolve_name(b"socket")
        seccomp.seccomp_rule_add_array(rules, ctypes.c_uint32(_ALLOW), number, 1, ctypes.byref(is_it))
    if "yes" in said(unit, "MemoryDenyWriteExecute"):
        _checked(libc.prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0))
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _checked(seccomp.seccomp_load(rules))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "this machine does not do it")


if __name__ == "__main__":
    try:
        confine(Path(sys.argv[1]).read_text())
    except OSError:
        sys.exit(NOT_HERE)
    os.execvp(sys.argv[2], sys.argv[2:])
