"""A pseudo-terminal that runs the command; the test reads and types."""

import io
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kit.cli import PATIENCE_S, clean_environ
from payagent.cli import run
from payagent.cli.terminal import Terminal

_IN_A_TERMINAL = (
    "import fcntl, os, signal, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "signal.signal(signal.SIGINT, signal.SIG_DFL);"
    "os.execv(sys.executable, [sys.executable, '-m', 'payagent', *sys.argv[1:]])"
)


class Session:
    """A running command and its terminal; `seen` is everything it has shown so far."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self._process = process
        self.seen = ""
        self._expected_to = 0

    def expect(self, text: str) -> None:
        """Read until the text appears after everything expected so far."""
        end_s = time.monotonic() + PATIENCE_S
        while (at := self.seen.find(text, self._expected_to)) < 0:
            assert time.monotonic() < end_s, f"{text!r} did not come"
            assert self._read(), f"it ended before {text!r} came"
        self._expected_to = at + len(text)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode() + b"\n")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        os.write(self._master, b"\x03")

    def terminate(self) -> None:
        self._process.terminate()

    def is_echoing(self) -> bool:
        """Whether typed text is shown."""
        return bool(termios.tcgetattr(self._master)[3] & termios.ECHO)

    def end(self) -> int:
        """Read the rest; return the exit code."""
        while self._read():
            pass
        return self._process.wait(PATIENCE_S)

    def _read(self) -> bool:
        waiting = select.poll()
        waiting.register(self._master, select.POLLIN)
        ready = waiting.poll(PATIENCE_S * 1000)
        try:
            data = os.read(self._master, 4096) if ready else b""
        except OSError:
            data = b""
        self.seen += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def at_terminal(
    *arguments: object, stdout: int | None = None, columns: int = 100, **environ: str
) -> Iterator[Session]:
    """Run a command at a terminal of this width; `stdout` may be a pipe instead."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_A_TERMINAL, *map(str, arguments)],
        stdin=slave,
        stdout=slave if stdout is None else stdout,
        stderr=slave,
        env=clean_environ() | {"TERM": "xterm", "COLUMNS": str(columns)} | environ,
    )
    os.close(slave)
    try:
        yield Session(master, process)
    finally:
        process.kill()
        process.wait()
        os.close(master)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*arguments: object) -> str:
    """What a command shows on a terminal, run in this process. COLUMNS is its width."""
    screen = _Screen()
    assert run([*map(str, arguments)], Terminal(_Screen(), screen, screen)) == 0, screen.getvalue()
    return screen.getvalue()
