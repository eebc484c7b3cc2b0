"""The daemon's side of the signer: starts its process, requests signatures, and detects when it ends.

Start with `unlocked` and `SignerProcess`.

Never: holds the passphrase or the key; restarts a signer that has ended (only a restart of the daemon does).
"""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from payagent.core.address import Address, parse_address
from payagent.core.hard_caps import Caps
from payagent.core.network import Network
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile
from payagent.signer.messages import CHANNEL, MESSAGE_BYTES_MAX, signature_of, unpacked

ANSWER_S = 10
"""Timeout in seconds. A signature takes less than a millisecond, so a signer without an answer by then is lost.

An HSM has `keystore.answer_s` more.
"""
_END_S = 2

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from payagent.signer.launcher import main; main()"
)
_ROOT = str(Path(__file__).parents[2])
_STDERR_MAX = 4_000


class SignerProcess:
    """The keys of the wallet's `accounts`, in another process.

    Only one request is outstanding at a time, so the socket buffer never fills up.
    """

    def __init__(self, sock: socket.socket, pid: int, answer_s: float = 0) -> None:
        self.pid = pid
        self.code = "signer_lost"
        """Why the daemon ends if the signer is lost: it starts again, but not after `keystore_invalid`."""
        self._answer_s = answer_s
        self.accounts: tuple[AccountSigner, ...] = ()
        self.problem: str | None = None
        """Why the signer is lost, or None while it can sign."""
        self._socket = sock
        self._on_lost: Callable[[], None] = lambda: None
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        """Requests that wait for an answer. Only the first has been sent."""
        self._timer: asyncio.TimerHandle | None = None

    async def signature(self, body: bytes, paid: int, account: int) -> bytes:
        """Return the signature, if the signer's own policy allows the body. Call it after `watch`.

        A cancelled caller does not take the next caller's answer.
        Refused: `signer_refused`, `limit_exceeded` or `asset_not_allowed` by that policy; `signer_lost`. With an
        HSM: `signer_away`, `signer_wrong`.
        """
        return await self._answer(bytes((account,)) + paid.to_bytes(2, "big") + body)

    async def channel(self, account: int, kind: str, **fields: object) -> bytes:
        """Return what `signer.channels` answers to a request. Only where channels are on.

        Refused as `signature`.
        """
        return await self._answer(bytes((CHANNEL, account)) + json.dumps({kind: fields}).encode())

    async def _answer(self, message: bytes) -> bytes:
        self._require_alive()
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, waiting))
        if len(self._waiting) == 1:
            self._send_next()
        answer = await waiting
        if not answer:
            self._require_alive()
        try:
            return signature_of(answer)
        except Refused as refused:
            if refused.code != "keystore_invalid":
                raise
            self.code = refused.code  # the HSM refuses the PIN, which no restart may try again
            self._lose(refused.detail)
        raise Refused("signer_lost", f"the signer has ended: {self.problem}")

    def _send_next(self) -> None:
        """Send the next request. Requests whose caller was cancelled are dropped."""
        while self._waiting and self._waiting[0][1].done():
            self._waiting.popleft()
        if self._waiting:
            try:
                self._socket.send(self._waiting[0][0])
            except OSError as error:
                self._lose(_no_answer(error))
                return
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(ANSWER_S + self._answer_s, self._lose, _no_answer(TimeoutError()))

    def _require_alive(self) -> None:
        if self.problem is not None:
            raise Refused("signer_lost", f"the signer process has ended: {self.problem}")

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Enable `signature`. `on_lost` is called once when the process ends, or now if it has ended."""
        self._on_lost = on_lost
        if self.problem is not None:
            on_lost()
            return
        asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def unwatch(self) -> None:
        """Stop watching for the end of the process."""
        asyncio.get_running_loop().remove_reader(self._socket)

    def _receive(self) -> None:
        """Read an answer for the first request, or notice that the socket was closed."""
        try:
            message = self._socket.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            self.unwatch()
            self._lose("its process has ended")
        elif self._waiting:
            self._cancel_timer()
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(message)
            self._send_next()

    def _lose(self, why: str) -> None:
        """Give up the signer. The socket is shut down: a late answer would be taken for the next request's."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._cancel_timer()
        if self.problem is None:
            self.problem = why
            self._on_lost()
        while self._waiting:
            _, answer = self._waiting.popleft()
            if not answer.done():
                answer.set_result(b"")

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@dataclass(frozen=True, slots=True)
class AccountSigner:
    """Signs for one account of the wallet, counted from 0."""

    process: SignerProcess
    number: int
    address: Address
    public_key: bytes

    async def signature(self, body: bytes, paid: int) -> bytes:
        """As `SignerProcess.signature`."""
        return await self.process.signature(body, paid, self.number)

    async def channel(self, kind: str, **fields: object) -> bytes:
        """As `SignerProcess.channel`."""
        return await self.process.channel(self.number, kind, **fields)


def _no_answer(error: OSError) -> str:
    return f"it does not answer ({type(error).__name__})"


@dataclass(frozen=True, slots=True)
class HsmOptions:
    """Seconds that the HSM has for a signature, and the environment of its module."""

    answer_s: int
    environment: Mapping[str, str]


@contextmanager
def unlocked(
    keystore: Path,
    secret: SecretFile | None,
    network: Network,
    number: int,
    caps: Caps,
    day_caps: Caps,
    count: int = 1,
    lock: int | None = None,
    hsm: HsmOptions | None = None,
    channels: Mapping[str, object] | None = None,
) -> Generator[tuple[SignerProcess, list[str]]]:
    """Start a signer process for the account `number` and those that follow it, `count` in all.

    The process ends when the context exits.

    The signer refuses more than `caps` per transaction and more than `day_caps` in 24 hours. `secret`: the file of
    the passphrase, or of the HSM's PIN. Without it, it asks on the terminal. `hsm`: if the keystore names keys of
    an HSM. `lock`: the open keystore, which the process keeps in place of this one, so that its lock stays and
    nobody here can read it. `channels`: `Settings.channel_rules`. The list names the protections that this machine
    did not allow.
    Call it in the main thread: it handles SIGTERM until the keystore is unlocked.
    Refused: `keystore_invalid`, `keystore_locked`, `config_invalid` for that file or the HSM's module,
    `signer_away`, `signer_lost`.
    """
    own_end, signer_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with own_end:
        with signer_end:
            process = _start(signer_end, lock)
        try:
            order = {
                "keystore": str(keystore),
                "secret": secret and {"path": str(secret.path), "private": secret.private},
                "network": network.name,
                "account": number,
                "accounts": count,
                "caps": dict(caps),
                "day_caps": dict(day_caps),
                "hsm": hsm and {"answer_s": hsm.answer_s, "environment": dict(hsm.environment)},
                "channels": channels,
            }
            with _sigterm_as_an_exit():
                fields = _unlock(own_end, order, process)
            own_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_S, 0))
            signer = SignerProcess(own_end, fields["pid"], hsm.answer_s if hsm else 0)
            signer.accounts = tuple(
                AccountSigner(
                    signer, place, parse_address(one["address"], network), bytes.fromhex(one["public_key"])
                )
                for place, one in enumerate(fields["accounts"])
            )
            yield signer, fields["missing"]
        finally:
            with suppress(OSError):
                own_end.shutdown(socket.SHUT_RDWR)
            _end(process)


def _start(sock: socket.socket, lock: int | None) -> subprocess.Popen[bytes]:
    """Start an isolated interpreter with an empty environment and no open files but the socket and the lock.

    The lock is closed here. Its stderr is read until it has read a secret.
    """
    locks = () if lock is None else (lock,)
    try:
        return subprocess.Popen(  # noqa: S603  our own interpreter and our own program
            (sys.executable, "-I", "-c", _PROGRAM, _ROOT, str(os.getpid())),
            stdin=sock.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=locks,
            env={},
            cwd="/",
        )
    finally:
        for handle in locks:
            os.close(handle)


@contextmanager
def _sigterm_as_an_exit() -> Generator[None]:
    """Turn SIGTERM into SystemExit. Otherwise it would end a passphrase prompt without restoring the echo."""

    def leave(_number: int, _frame: object) -> NoReturn:
        sys.exit()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process. The closed socket ends a serving signer.

    A signer that still asks for the passphrase is ended by a signal, which lets it restore the terminal.
    """
    process.terminate()
    try:
        process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _unlock(sock: socket.socket, order: Mapping[str, object], process: subprocess.Popen[bytes]) -> dict[str, Any]:
    try:
        sock.send(json.dumps(order).encode())
        answer = sock.recv(MESSAGE_BYTES_MAX)
    except OSError:
        answer = b""
    if not answer:
        raise Refused(
            "signer_lost", "the signer process ended before it opened the keystore" + _last_error_line(process)
        )
    fields: dict[str, Any] = json.loads(answer)
    if "name" in fields:
        raise unpacked(answer)
    return fields


def _last_error_line(process: subprocess.Popen[bytes]) -> str:
    """Return the last line of stderr, which says why the process ended before it read a secret."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_S)
    if process.stderr is None or process.returncode is None:
        return ""
    lines = process.stderr.read(_STDERR_MAX).decode(errors="replace").split("\n")
    return next((f": {line}" for line in reversed(lines) if line.strip()), "")
