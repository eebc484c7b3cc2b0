"""`payagent` as a process forked from one that has imported it. It skips only the import, which takes two seconds.

As a program it is the fork server. An order is a message on its stdin, a Unix socket: arguments and environment as
JSON, with the file descriptors of the new process's output and of a pipe for two numbers, its id and its exit
status. The processes end with the server, and the server ends with the tests.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import IO

IMPORTED = ("payagent.cli.main", "payagent.cli.sd_notify", "payagent.daemon.serve", "payagent.settings.loading")
HANG_S = 120.0
NUMBER_BYTES = 4
ORDER_BYTES_MAX = 1 << 17


class Forked:
    """A running `payagent`, as `subprocess.Popen` shows one."""

    def __init__(
        self, *arguments: str, environ: Mapping[str, str] | None = None, log: IO[str] | None = None
    ) -> None:
        """It writes into `log`, or into the pipe `stderr`."""
        stderr, theirs = os.pipe()
        self._status, status = os.pipe()
        order = json.dumps([arguments, {**(os.environ if environ is None else environ)}]).encode()
        socket.send_fds(_server(), [order], [theirs if log is None else log.fileno(), status])
        os.close(theirs)
        os.close(status)
        self.stderr = os.fdopen(stderr)
        if log is not None:
            self.stderr.close()
        self.returncode: int | None = None
        self.pid = self._told(HANG_S)
        assert self.pid is not None

    def _told(self, timeout_s: float) -> int | None:
        """The next number from the server, unless there is none yet."""
        ready = select.poll()  # select() takes no descriptor above 1023
        ready.register(self._status, select.POLLIN)
        if not ready.poll(timeout_s * 1000):
            return None
        number = os.read(self._status, NUMBER_BYTES)
        assert len(number) == NUMBER_BYTES, "the fork server has ended"
        return int.from_bytes(number, "big", signed=True)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float = HANG_S) -> int:
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("payagent", timeout)
        return code

    def _wait(self, timeout_s: float) -> int | None:
        if self.returncode is None and (code := self._told(timeout_s)) is not None:
            self.returncode = code
            os.close(self._status)
        return self.returncode

    def communicate(self, timeout: float = HANG_S) -> tuple[None, str]:
        with self.stderr as said:
            talk = said.read()
        self.wait(timeout)
        return None, talk

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # the server has just reaped it
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


Process = Forked | subprocess.Popen[str]


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-m", "kit.forks"],
        stdin=theirs,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    theirs.close()

    def end() -> None:
        ours.close()
        server.wait()

    atexit.register(end)
    return ours


def serve() -> None:
    """Fork a process for every order, and tell how each ended. Only a fork returns, to become `payagent`."""
    orders = socket.socket(fileno=os.dup(0))
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([orders, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            for pid in tuple(running):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    pipe = running.pop(pid)
                    _tell(pipe, os.waitstatus_to_exitcode(status))
                    os.close(pipe)
        if orders in ready:
            order, descriptors, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 2)
            if not order:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                sys.exit()
            output, status = descriptors
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                for number in (orders.detach(), woken, wake, status, *running.values()):
                    os.close(number)
                return _become(order, output)
            os.close(output)
            running[pid] = status
            _tell(status, pid)


def _tell(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(pipe, number.to_bytes(NUMBER_BYTES, "big", signed=True))


def _become(order: bytes, output: int) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    arguments, environ = json.loads(order)
    tempfile.tempdir = None
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments


if __name__ == "__main__":
    from payagent.cli import main

    for name in IMPORTED:
        import_module(name)
    gc.collect()
    gc.freeze()
    serve()
    main()
