"""The daemon's side of the signer: starts its process, requests signatures, and detects when it ends.

Start with `unlocked` and `SignerProcess`.

May import: core, wallet.keys (its types), secret_file, `process` (its constants).
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
from pathlib import Path
from typing import Any, NoReturn

from payagent.core.address import parse_address
from payagent.core.hard_caps import Caps
from payagent.core.network import Network
from payagent.core.problems import Refused
from payagent.secret_file import SecretFile
from payagent.signer.process import MESSAGE_BYTES_MAX, SIGNED
from payagent.wallet.keys import Account

ANSWER_S = 10
"""Timeout in seconds. A signature takes less than a millisecond, so a signer silent for so long is lost."""
_END_S = 2
_ENDED = "its process has ended"

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from payagent.signer.launcher import main; main()"
)
_ROOT = str(Path(__file__).parents[2])
_TALK_MAX = 4_000


class SignerProcess:
    """A `Signer` whose key is in another process.

    `sign` blocks. After `watch`, the event loop uses `signature`, and nothing may call `sign`. Only one request is
    outstanding at a time, so the socket buffer never fills up.
    """

    def __init__(self, line: socket.socket, pid: int, public_key: bytes, payment_key_hash: bytes) -> None:
        self.pid, self.public_key, self.payment_key_hash = pid, public_key, payment_key_hash
        self.problem: str | None = None
        """Why the signer is lost, or None while it can sign."""
        self._line = line
        self._on_lost: Callable[[], None] = lambda: None
        self._asked: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        """Requests that wait for an answer. Only the first has been sent."""
        self._patience: asyncio.TimerHandle | None = None

    def sign(self, body: bytes, paid: int) -> bytes:
        """Return the signature, if the signer's own policy allows the body. Blocks.

        Refused: `signer_refused`, `limit_exceeded` or `asset_not_allowed` by that policy; `signer_lost`.
        """
        self._require_there()
        try:
            self._line.send(_question(body, paid))
            answer = self._line.recv(MESSAGE_BYTES_MAX)
        except OSError as error:
            self._lose(_silent(error))
            answer = b""
        return self._read(answer)

    async def signature(self, body: bytes, paid: int) -> bytes:
        """Like `sign`, but does not block the loop. A cancelled caller does not take the next caller's answer."""
        self._require_there()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append((_question(body, paid), answer))
        if len(self._asked) == 1:
            self._ask()
        return self._read(await answer)

    def _ask(self) -> None:
        """Send the next request. Requests whose caller was cancelled are dropped."""
        while self._asked and self._asked[0][1].done():
            self._asked.popleft()
        if self._asked:
            try:
                self._line.send(self._asked[0][0])
            except OSError as error:
                self._lose(_silent(error))
                return
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(ANSWER_S, self._lose, _silent(TimeoutError()))

    def _require_there(self) -> None:
        if self.problem is not None:
            raise Refused("signer_lost", f"the signer process has ended: {self.problem}")

    def _read(self, answer: bytes) -> bytes:
        """Parse an answer. An empty one means that the signer is lost."""
        if not answer:
            self._lose(_ENDED)
            self._require_there()
        if answer[:1] != SIGNED:
            raise _refusal(json.loads(answer[1:]))
        return answer[1:]

    def watch(self, on_lost: Callable[[], None]) -> None:
        """Enable `signature`. `on_lost` is called once when the process ends, or now if it has ended."""
        self._on_lost = on_lost
        if self.problem is not None:
            on_lost()
            return
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    def unwatch(self) -> None:
        """Stop watching for the end of the process."""
        asyncio.get_running_loop().remove_reader(self._line)

    def _hear(self) -> None:
        """Read an answer for the first request, or notice that the socket was closed."""
        try:
            heard = self._line.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            heard = b""
        if not heard:
            self.unwatch()
            self._lose(_ENDED)
        elif self._asked:
            self._be_patient_no_more()
            _, answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(heard)
            self._ask()

    def _lose(self, why: str) -> None:
        """Give up the signer. The socket is shut down: a late answer would be taken for the next request's."""
        with suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        self._be_patient_no_more()
        if self.problem is None:
            self.problem = why
            self._on_lost()
        while self._asked:
            _, answer = self._asked.popleft()
            if not answer.done():
                answer.set_result(b"")

    def _be_patient_no_more(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _silent(error: OSError) -> str:
    return f"it does not answer ({type(error).__name__})"


def _question(body: bytes, paid: int) -> bytes:
    return paid.to_bytes(2, "big") + body


def _refusal(told: Mapping[str, Any]) -> Refused:
    return Refused(told["name"], told["detail"], **told["context"])


@contextmanager
def unlocked(
    keystore: Path, passphrase: SecretFile | None, network: Network, number: int, caps: Caps, day_caps: Caps
) -> Generator[tuple[Account, SignerProcess, list[str]]]:
    """Start a signer process for the wallet's account. It ends when the context exits.

    The signer refuses more than `caps` per transaction and more than `day_caps` in 24 hours. Without a passphrase
    file it asks on the terminal. The list names the protections that this machine did not allow.
    Call it in the main thread: it handles SIGTERM until the keystore is unlocked.
    Refused: `keystore_invalid`, `keystore_locked`, `config_invalid` for the passphrase file, `signer_lost`.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with its:
            process = _start(its)
        try:
            order = {
                "keystore": str(keystore),
                "passphrase": passphrase and {"path": str(passphrase.path), "private": passphrase.private},
                "network": network.name,
                "account": number,
                "caps": dict(caps),
                "day_caps": dict(day_caps),
            }
            with _sigterm_as_an_exit():
                told = _unlock(ours, order, process)
            address = parse_address(told["address"], network)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_S, 0))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_S, 0))
            public_key = bytes.fromhex(told["public_key"])
            signer = SignerProcess(ours, told["pid"], public_key, address.payment_key_hash)
            yield Account(network, number, address, signer), signer, told["missing"]
        finally:
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            _end(process)


def _start(line: socket.socket) -> subprocess.Popen[bytes]:
    """Start an isolated interpreter with an empty environment and no open files but the socket.

    Its stderr is read until it has read a secret.
    """
    return subprocess.Popen(  # noqa: S603  our own interpreter and our own program
        (sys.executable, "-I", "-c", _PROGRAM, _ROOT, str(os.getpid())),
        stdin=line.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={},
        cwd="/",
    )


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


def _unlock(line: socket.socket, order: Mapping[str, object], process: subprocess.Popen[bytes]) -> dict[str, Any]:
    try:
        line.send(json.dumps(order).encode())
        answer = line.recv(MESSAGE_BYTES_MAX)
    except OSError:
        answer = b""
    if not answer:
        raise Refused(
            "signer_lost", "the signer process ended before it opened the keystore" + _last_words(process)
        )
    told: dict[str, Any] = json.loads(answer)
    if "name" in told:
        raise _refusal(told)
    return told


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """Return the last line of stderr, which says why the process ended before it read a secret."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_S)
    if process.stderr is None or process.returncode is None:
        return ""
    lines = process.stderr.read(_TALK_MAX).decode(errors="replace").split("\n")
    return next((f": {line}" for line in reversed(lines) if line.strip()), "")
