"""What a compromised daemon process can reach once it serves: nothing that leads to the key."""

import ctypes
import errno
import fcntl
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.cli import checks
from kit.daemon import log_of_a_run, start, stop

from payagent import sandbox
from payagent.sandbox import SandboxPlan

needs_landlock = pytest.mark.skipif(not sandbox.version(), reason="this kernel has no Landlock")

BEGIN = """
import ctypes, fcntl, json, os, platform, socket, subprocess, sys, termios, threading
from pathlib import Path
from payagent.daemon.serve import serve
from payagent.log import Redactor, configure_logging
from payagent.settings.loading import load_settings

config, told = Path(sys.argv[1]), set()

def attempt(what):
    try:
        what()
    except OSError as error:
        return type(error).__name__
    return "done"

def children(pid):
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]
"""

GETS_AT_FILES = """
def mischief(*_):
    name = threading.current_thread().name
    if name in told:
        return
    told.add(name)
    for path in sys.argv[2:]:
        def rename():
            os.rename(path, path + "2")
            try:
                os.close(os.open(path + "2", os.O_RDONLY))
            finally:
                os.rename(path + "2", path)
        def link():
            os.link(path, path + "-link")
            try:
                os.close(os.open(path + "-link", os.O_RDONLY))
            finally:
                os.unlink(path + "-link")
        def held():
            for handle in os.scandir("/proc/self/fd"):
                if os.path.exists(handle.path) and os.readlink(handle.path) == path:
                    return os.pread(int(handle.name), 16, 0)
            raise PermissionError
        ways = {
            "held open": held,
            "open": lambda: os.close(os.open(path, os.O_RDONLY)),
            "open to write too": lambda: os.close(os.open(path, os.O_RDWR)),
            "by another root": lambda: os.close(os.open("/proc/self/root" + path, os.O_RDONLY)),
            "by a program": lambda: os.close(os.open(path, os.O_RDONLY)) if os.system(f"cat '{path}' >&2") == 0
            else os.close(os.open(path, os.O_RDONLY)),
            "renamed": rename,
            "linked": link,
        }
        for way, what in ways.items():
            print(json.dumps([name, os.path.basename(path), way, attempt(what)]), flush=True)
    (launcher,) = children("self")
    (signer,) = children(launcher)
    for what in ("mem", "fd/0"):  # of root Landlock keeps what needs attaching, the others are empty or addresses
        def read():
            with open(f"/proc/{signer}/{what}", "rb") as file:
                file.read(16)
        print(json.dumps([name, "signer", what, attempt(read)]), flush=True)
    libc = ctypes.CDLL(None, use_errno=True)
    def trace():
        if libc.ptrace(16, int(signer), 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        libc.ptrace(17, int(signer), 0, 0)
    print(json.dumps([name, "signer", "traced", attempt(trace)]), flush=True)
    config, socket_folder = Path(sys.argv[1]), Path(os.environ["SOCKET_FOLDER"])
    brought = config.with_name("data") / "brought"
    brought.write_text("x")
    for what, attack in {
        "changed": lambda: config.open("a").close(),
        "truncated": lambda: os.truncate(config, 0),
        "replaced": lambda: os.rename(brought, config),
        "removed": config.unlink,
    }.items():
        print(json.dumps([name, "config", what, attempt(attack)]), flush=True)
    print(json.dumps([name, "socket folder", "write", attempt(lambda: (socket_folder / "x").touch())]), flush=True)
    elsewhere = config.with_name("planted")
    print(json.dumps([name, "planted", "write", attempt(lambda: elsewhere.write_text("x"))]), flush=True)
"""

GETS_OUT = """
CONNECTS = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
libc = ctypes.CDLL(None, use_errno=True)

def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "syscall")

def mischief(*_):
    name = threading.current_thread().name
    if name in told:
        return
    told.add(name)
    path, abstract, datagrams = sys.argv[2], chr(0) + sys.argv[3], sys.argv[4]
    def reconnect(kind, where):
        ours, _other = socket.socketpair(socket.AF_UNIX, kind)
        ours.connect(where)
    ways = {
        "types into the terminal": lambda: fcntl.ioctl(0, termios.TIOCSTI, b"x"),
        "types with bits that the kernel ignores": lambda: call(IOCTL, 0, ctypes.c_ulong(1 << 32 | 0x5412), b"x"),
        "pastes into the console": lambda: fcntl.ioctl(0, 0x541C, bytes([3])),
        "connects": lambda: socket.socket(socket.AF_UNIX).connect(path),
        "connects by name": lambda: socket.socket(socket.AF_UNIX).connect(abstract),
        "sends a datagram": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", datagrams),
        "connects half a pair": lambda: reconnect(socket.SOCK_DGRAM, datagrams),
        "connects half a pair of streams": lambda: reconnect(socket.SOCK_STREAM, path),
        "has the kernel make a socket": lambda: call(425, 8, ctypes.create_string_buffer(120)),
        "connects by a program": lambda: subprocess.run([sys.executable, "-c", CONNECTS, path], check=True),
    }
    if platform.machine() == "x86_64":
        ways["connects by x32"] = lambda: call(0x40000000 + 41, 1, 1, 0)
    for way, what in ways.items():
        try:
            answer = attempt(what)
        except subprocess.CalledProcessError:
            answer = "PermissionError"
        print(json.dumps([name, way, answer]), flush=True)
    print(json.dumps([name, "planted"]), flush=True)

IOCTL = 16 if platform.machine() == "x86_64" else 29
"""

SERVES = """
redactor = Redactor()
configure_logging(sys.stderr, redactor)
serve(
    load_settings(config, os.environ), config=config, environ=os.environ, can_ask=False,
    announce=mischief, redactor=redactor, checkpoint=mischief,
)
"""


def taken_over(
    folder: Path,
    mischief: str,
    *arguments: Path | str,
    preexec_fn: Callable[[], None] | None = None,
) -> list[list[str]]:
    """What the daemon's own threads could reach, by thread: the event loop's and the ledger writer's."""
    program = BEGIN + mischief + SERVES
    command = [sys.executable, "-c", program, str(folder / "config.toml"), *map(str, arguments)]
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "SOCKET_FOLDER": str(folder / "s")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environ, preexec_fn=preexec_fn
    ) as process:
        assert process.stdout is not None
        told: list[list[str]] = []
        for line in process.stdout:
            told.append(json.loads(line))
            if {name for name, what, *_ in told if what == "planted"} >= {"MainThread", "ledger-writer"}:
                process.terminate()
                break
        process.stdout.read()
    assert process.returncode == 0
    return told


@needs_landlock
def test_a_compromised_daemon_cannot_reach_keystore_passphrase_words_or_signer(
    folder: Path,
) -> None:
    words = folder / "data/recovery-words.txt"
    words.touch(mode=0o600)
    told = taken_over(folder, GETS_AT_FILES, folder / "data/keystore.json", folder / "passphrase", words)
    assert len(told) == 2 * (3 * 7 + 3 + 4 + 1 + 1)
    kept = {"PermissionError", "OSError"}  # Landlock answers EXDEV to a move between folders
    assert [one for one in told if one[-1] not in kept] == []


@contextmanager
def terminal(kernel: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Puts a process into its own terminal, after `kernel` ran: there a shell waits for it to end."""
    master, slave = os.openpty()

    def enter() -> None:
        kernel()
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.dup2(slave, 0)

    try:
        yield enter
    finally:
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("old", [False, True], ids=["as it is", "old"])
def test_a_compromised_daemon_cannot_type_into_a_terminal_or_connect_to_a_unix_socket(
    folder: Path,
    old: bool,
) -> None:
    """A program that takes commands over a Unix socket, such as tmux, would do what the daemon may not."""
    abstract = f"payagent-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX) as path,
        socket.socket(socket.AF_UNIX) as name,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        terminal(without_landlock if old else lambda: None) as enter,
    ):
        path.bind(str(folder / "stream"))
        name.bind("\0" + abstract)
        datagrams.bind(str(folder / "datagrams"))
        path.listen(64)
        name.listen(64)
        arguments = (folder / "stream", abstract, folder / "datagrams")
        told = taken_over(folder, GETS_OUT, *arguments, preexec_fn=enter)
    answers = {(way, *answer) for _, way, *answer in told} - {("planted",)}
    assert len(answers) == 10 + (platform.machine() == "x86_64")
    is_a_pair = ("connects half a pair of streams", "OSError")  # it is already connected and stays so
    assert {answer for answer in answers if answer[1] != "PermissionError"} == {is_a_pair}


SAME_USER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)

def traced(pid):
    if libc.ptrace(16, pid, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(17, pid, 0, 0)

for pid in map(int, sys.argv[1:]):
    for what in ("mem", "environ", "maps", "fd/0"):
        try:
            os.close(os.open(f"/proc/{pid}/{what}", os.O_RDONLY))
            print(pid, what, "done")
        except OSError as error:
            print(pid, what, type(error).__name__)
    try:
        traced(pid)
        print(pid, "traced", "done")
    except OSError as error:
        print(pid, "traced", type(error).__name__)
"""


def without_capabilities() -> None:
    """Drops root's capabilities for all that is started from here: they would distort the result."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() == 0:
        assert libc.prctl(28, 3, 0, 0, 0) == 0
        assert libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0


def test_another_program_of_the_same_user_cannot_read_or_trace_the_daemon(folder: Path) -> None:
    """Its memory holds keys of merchants and providers. An ordinary process of the user can be read."""
    daemon, _ = start(folder, without_capabilities)
    waits = [sys.executable, "-c", "input()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, preexec_fn=without_capabilities) as other:
        asked = [sys.executable, "-c", SAME_USER, str(daemon.pid), str(other.pid)]
        told = subprocess.run(
            asked, capture_output=True, text=True, timeout=120, check=False, preexec_fn=without_capabilities
        ).stdout.splitlines()
        other.communicate(b"\n")
    assert stop(daemon)[0] == 0
    of_daemon = [line.split()[1:] for line in told if line.startswith(f"{daemon.pid} ")]
    of_other = [line.split()[1:] for line in told if line.startswith(f"{other.pid} ")]
    assert {way for way, _ in of_daemon} == {"mem", "environ", "maps", "fd/0", "traced"}
    assert {answer for _, answer in of_daemon} == {"PermissionError"}
    assert ["mem", "done"] in of_other


# What is hidden, and what cannot be


def plan_of(tmp_path: Path, passphrase: str, *read_anew: str, kernel: int = 7) -> SandboxPlan:
    for name in ("data/keystore.json", "config/config.toml", "config/passphrase", "secret/passphrase"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    always = [tmp_path / "data/keystore.json", tmp_path / "data/words"]
    return sandbox.plan(always, tmp_path / passphrase, [tmp_path / name for name in read_anew], kernel)


def test_the_sandbox_hides_the_file_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    plan = plan_of(tmp_path, "link/passphrase", "config/config.toml")
    assert plan == SandboxPlan((tmp_path / "data/keystore.json", tmp_path / "secret/passphrase"), ())


@pytest.mark.parametrize(
    ("passphrase", "read_anew"),
    [("config/passphrase", "config/config.toml"), ("/etc/hostname", "config/config.toml")],
)
def test_a_passphrase_beside_files_to_reload_is_not_hidden_and_the_reason_is_given(
    tmp_path: Path, passphrase: str, read_anew: str
) -> None:
    plan = plan_of(tmp_path, passphrase, read_anew)
    (why,) = plan.open
    assert plan.hidden == (tmp_path / "data/keystore.json",)
    assert str(tmp_path / passphrase) in why
    assert "move it to a folder of its own" in why


def test_a_passphrase_beside_the_keystore_is_hidden_whatever_else_is_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/passphrase").touch()
    plan = plan_of(tmp_path, "data/passphrase", "data/config.toml")
    assert plan == SandboxPlan((tmp_path / "data/keystore.json", tmp_path / "data/passphrase"), ())


def test_a_file_with_a_hard_link_is_not_reported_as_hidden(tmp_path: Path) -> None:
    plan_of(tmp_path, "secret/passphrase")
    (tmp_path / "copy").hardlink_to(tmp_path / "data/keystore.json")
    plan = plan_of(tmp_path, "secret/passphrase")
    assert plan.hidden == (tmp_path / "secret/passphrase",)
    assert "hard link" in plan.open[0]


def without_landlock() -> None:
    """Answers system calls like a kernel without Landlock (before 5.13, or disabled), by a seccomp filter."""
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050000 | errno.ENOSYS), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    assert libc.prctl(38, ctypes.c_ulong(1), zero, zero, zero) == 0
    assert libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(Program(len(steps), code)), zero, zero) == 0


@needs_landlock
@pytest.mark.parametrize(
    ("kernel", "level"), [(without_landlock, "warning"), (None, "info")], ids=["old", "as it is"]
)
def test_a_kernel_without_landlock_is_warned_of_at_each_start_and_by_doctor(
    folder: Path,
    kernel: Callable[[], None] | None,
    level: str,
) -> None:
    (line,) = [line for line in log_of_a_run(folder, kernel) if "daemon.fenced" in line]
    told = json.loads(line)
    assert (told["level"], bool(told["not_hidden"]), bool(told["hidden"])) == (
        level,
        kernel is not None,
        kernel is None,
    )
    if kernel is None:
        check = checks(folder / "config.toml")["fence"]
    else:
        doctor = [sys.executable, "-m", "payagent", "doctor", "--json", "--config", str(folder / "config.toml")]
        result = subprocess.run(
            doctor, capture_output=True, text=True, check=False, timeout=120, preexec_fn=kernel
        )
        (check,) = [check for check in json.loads(result.stdout)["checks"] if check["name"] == "fence"]
    assert (check["ok"], check["warning"]) == (True, kernel is not None)
    assert ("no Landlock" in check["detail"]) == (kernel is not None)
