"""The daemon's end of the line: starts the signer's process, asks it for signatures, and notices when it is gone.

May import: core, wallet.keys (its types), secret_file, `process` (its numbers). Never: has the passphrase or
the key; starts a second process for one that is gone, which only the daemon's own start does.
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
"""A signature takes less than a millisecond; who is silent for so long does not come back."""
_END_S = 2
_ENDED = "its process has ended"

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from payagent.signer.launcher import main; main()"
)
_ROOT = str(Path(__file__).parents[2])
_TALK_MAX = 4_000


class SignerProcess:
    """A `Signer` whose key is elsewhere. `sign` is for who may wait for it; a loop that must go on uses
    `signature` once it is watched, and then nothing else does.

    One question is under way at a time, and the next leaves with the answer to it: so the line never fills up.
    """

    def __init__(self, line: socket.socket, pid: int, public_key: bytes, payment_key_hash: bytes) -> None:
        self.pid, self.public_key, self.payment_key_hash = pid, public_key, payment_key_hash
        self.problem: str | None = None
        """Why nothing can be signed any more; None while something can."""
        self._line = line
        self._on_lost: Callable[[], None] = lambda: None
        self._asked: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        """What waits for an answer; the first has been sent."""
        self._patience: asyncio.TimerHandle | None = None

    def sign(self, body: bytes, paid: int) -> bytes:
        """The signature, if the signer's own policy allows the body.

        Refused: `signer_refused`, `limit_exceeded` and `asset_not_allowed` by it, `signer_lost`.
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
        """As `sign`, and the loop goes on meanwhile. Who is cancelled does not take the answer of the next one."""
        self._require_there()
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append((_question(body, paid), answer))
        if len(self._asked) == 1:
            self._ask()
        return self._read(await answer)

    def _ask(self) -> None:
        """Send what is asked next; who gave up before their turn is not asked for."""
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
            raise Refused("signer_lost", f"the process that holds the key is gone: {self.problem}")

    def _read(self, answer: bytes) -> bytes:
        """An empty one stands for none."""
        if not answer:
            self._lose(_ENDED)
            self._require_there()
        if answer[:1] != SIGNED:
            raise _refusal(json.loads(answer[1:]))
        return answer[1:]

    def watch(self, on_lost: Callable[[], None]) -> None:
        """From now on `signature` serves; and this is called once if the process ends, or has already."""
        self._on_lost = on_lost
        if self.problem is not None:
            on_lost()
            return
        asyncio.get_running_loop().add_reader(self._line, self._hear)

    def unwatch(self) -> None:
        """From now on, nobody is told of its end."""
        asyncio.get_running_loop().remove_reader(self._line)

    def _hear(self) -> None:
        """An answer, when one is due; else the line has ended."""
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
        """What is said late would be taken for the answer to the next question: nothing is heard from now on."""
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
    return Refused(told["code"], told["detail"], **told["context"])


@contextmanager
def unlocked(
    keystore: Path, passphrase: SecretFile | None, network: Network, number: int, caps: Caps, day_caps: Caps
) -> Generator[tuple[Account, SignerProcess, list[str]]]:
    """The wallet's account, signed for by a process of its own, which ends with the block.

    It signs nothing that takes more than `caps` out of the wallet at once, or `day_caps` in 24 hours. Without a
    file it asks on the terminal. Told too: what this machine did not let the signer give up.
    For the main thread: until it is unlocked, SIGTERM is answered here.
    Refused: `keystore_invalid`, `keystore_locked`, `config_invalid` for the passphrase's file, `signer_lost`.
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
    """The interpreter, isolated: no environment, no file of ours but the line; what it says is heard until it has
    read a secret.
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
    """Else it ends the daemon and the signer with it, and a terminal that is asked keeps hiding what is typed."""

    def leave(_number: int, _frame: object) -> NoReturn:
        sys.exit()

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process: it ends with the line to it; while it still asks for the passphrase, by a signal, so that
    it mends the terminal first.
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
            "signer_lost", "the process that was to open the keystore ended before it did" + _last_words(process)
        )
    told: dict[str, Any] = json.loads(answer)
    if "code" in told:
        raise _refusal(told)
    return told


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """Why it ended, when that was before it read any secret: the last line of what it said."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=_END_S)
    if process.stderr is None or process.returncode is None:
        return ""
    lines = process.stderr.read(_TALK_MAX).decode(errors="replace").split("\n")
    return next((f": {line}" for line in reversed(lines) if line.strip()), "")
