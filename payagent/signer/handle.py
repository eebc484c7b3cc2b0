"""The daemon's end of the line: starts the signer's process, asks it for signatures, and notices when it is gone.

May import: core, wallet.keys (its types), secretfile, `process` (its numbers). Never: has the passphrase or
the key; starts a second process for one that is gone, which only the daemon's own start does.
"""

import asyncio
import json
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from payagent.core.address import parse_address
from payagent.core.caps import Caps
from payagent.core.network import Network
from payagent.core.problem import Refused
from payagent.secretfile import SecretFile
from payagent.signer.process import MESSAGE_BYTES_MAX, SIGNED
from payagent.wallet.keys import Account

ANSWER_S = 10
"""A signature takes less than a millisecond; who is silent for so long does not come back."""
_END_S = 2

_PROGRAM = (
    "import sys; root = sys.argv[1]; root in sys.path or sys.path.insert(0, root); "
    "from payagent.signer.process import main; main()"
)
_ROOT = str(Path(__file__).parents[2])


class SignerProcess:
    """A `Signer` whose key is elsewhere. For one thread."""

    def __init__(self, line: socket.socket, pid: int, public_key: bytes, payment_key_hash: bytes) -> None:
        self.pid, self.public_key, self.payment_key_hash = pid, public_key, payment_key_hash
        self.problem: str | None = None
        """Why nothing can be signed any more; None while something can."""
        self._line = line
        self._on_lost: Callable[[], None] = lambda: None

    def sign(self, body: bytes, paid: int) -> bytes:
        """The signature, if the signer's own policy allows the body. Refused: `signer_refused`, `signer_lost`."""
        if self.problem is not None:
            self._refuse()
        try:
            self._line.send(paid.to_bytes(2, "big") + body)
            answer = self._line.recv(MESSAGE_BYTES_MAX)
        except OSError as error:
            self._lose(f"it does not answer ({type(error).__name__})")
        if not answer:
            self._lose("its process has ended")
        if answer[:1] != SIGNED:
            raise Refused("signer_refused", answer[1:].decode())
        return answer[1:]

    def watch(self, on_lost: Callable[[], None]) -> None:
        """From now on, call this once if the process ends, whether a signature was asked for or not."""
        self._on_lost = on_lost
        asyncio.get_running_loop().add_reader(self._line, self._notice)

    def unwatch(self) -> None:
        """Its end is no news any more."""
        asyncio.get_running_loop().remove_reader(self._line)

    def _notice(self) -> None:
        """The line can be read and no answer is due: it has ended."""
        asyncio.get_running_loop().remove_reader(self._line)
        if self.problem is None:
            self.problem = "its process has ended"
            self._on_lost()

    def _lose(self, why: str) -> NoReturn:
        """What is said late would be taken for the answer to the next question: nothing is heard from now on."""
        self.problem = why
        self._line.shutdown(socket.SHUT_RDWR)
        self._on_lost()
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise Refused("signer_lost", f"the process that holds the key is gone: {self.problem}")


@contextmanager
def unlocked(
    keystore: Path,
    passphrase: SecretFile | None,
    network: Network,
    number: int,
    caps: Caps,
) -> Generator[tuple[Account, SignerProcess, list[str]]]:
    """The wallet's account, signed for by a process of its own, which ends with the block.

    Without a file the signer asks on the terminal. Told too: what this machine did not let the signer give up.
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
            }
            with _sigterm_as_an_exit():
                told = _unlock(ours, order)
            address = parse_address(told["address"], network)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ANSWER_S, 0))
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", ANSWER_S, 0))
            public_key = bytes.fromhex(told["public_key"])
            signer = SignerProcess(ours, process.pid, public_key, address.payment_key_hash)
            yield Account(network, number, address, signer), signer, told["missing"]
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            _end(process)


def _start(line: socket.socket) -> subprocess.Popen[bytes]:
    """The interpreter, isolated: no environment, no file of ours but the line, no place to write to."""
    return subprocess.Popen(  # noqa: S603  our own interpreter and our own program
        (sys.executable, "-I", "-c", _PROGRAM, _ROOT),
        stdin=line.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
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
    """It ends with the line; while it still asks for the passphrase, by a signal, and mends the terminal first."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _unlock(line: socket.socket, order: Mapping[str, object]) -> dict[str, Any]:
    try:
        line.send(json.dumps(order).encode())
        answer = line.recv(MESSAGE_BYTES_MAX)
    except OSError:
        answer = b""
    if not answer:
        raise Refused("signer_lost", "the process that was to open the keystore ended before it did")
    told: dict[str, Any] = json.loads(answer)
    if "code" in told:
        raise Refused(told["code"], told["detail"])
    return told
