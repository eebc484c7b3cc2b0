"""The token process: holds an HSM's session, and signs the hashes that the signer asks for.

The signer starts it before it confines itself. A message is a key's number (one byte) and a transaction's id; the
answer is the id and a message as the signer's. The process may open files and sockets, because a module does. It
starts no program.

An HSM is blind: it signs whatever it is asked to. All limits are the signer's, which also verifies each signature
before it answers.

Never: decides what is signed; loads the module in the signer; tries a refused PIN again.
"""

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from payagent import seccomp
from payagent.core.network import Network
from payagent.core.problems import Refused
from payagent.secret_file import open_to_others, require_unchanged_by_others
from payagent.signer.hardening import before_the_secret, require_parent
from payagent.signer.messages import MESSAGE_BYTES_MAX, REFUSED, SIGNED, packed, signature_of
from payagent.wallet.keys import body_hash, key_hash
from payagent.wallet.keystore import Hsm

if TYPE_CHECKING:
    from payagent.signer.pkcs11_token import Pkcs11Token

HASH_BYTES, SIGNATURE_BYTES = 32, 64
PAUSE_MAX_S = 60.0
_LOOK_US = 50_000  # the confined signer cannot poll: it looks at the time as often

# execve, execveat, ptrace, process_vm_readv, process_vm_writev, mount, move_mount, bpf
_CALLS = {
    "x86_64": (59, 322, 101, 310, 311, 165, 429, 321),
    "aarch64": (221, 281, 117, 270, 271, 40, 429, 280),
}
"""The numbers of the denied system calls, by architecture."""


class TokenAway(Refused):
    """The HSM cannot sign now, and may be back by itself."""

    def __init__(self, detail: str) -> None:
        super().__init__("signer_away", detail)


class TokenRefused(Refused):
    """The HSM has another PIN or key, which only a person mends."""

    def __init__(self, detail: str) -> None:
        super().__init__("keystore_invalid", detail)


class HashSigner(Protocol):
    """Keys in hardware or in a service, which sign hashes. Both methods raise `TokenAway` or `TokenRefused`."""

    def keys(self) -> tuple[bytes, ...]:
        """The Ed25519 public keys, by account. Each has 32 bytes."""

    def sign_hash(self, key: int, tx_id: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032, 64 bytes) over the 32 bytes, by the key of this account."""


def require_module(module: Path, network: Network) -> str:
    """Check that only root can change the module, which sees the PIN; return path and mode.

    On the devnet it may be this user's. Refused `config_invalid`.
    """
    checked = require_unchanged_by_others(module)
    if module.stat().st_uid != 0 and network.name != "devnet":
        raise open_to_others(f"{module} is not root's: programs of its owner can replace it", f"chown 0 {module}")
    return checked


def open_token(hsm: Hsm, environment: Mapping[str, str], network: Network) -> "Pkcs11Token":
    """Load the HSM's module into this process, with more variables of the environment, and find the token.

    Refused: `signer_away`, `keystore_invalid`, and `config_invalid` for the module's file.
    """
    require_module(Path(hsm.module), network)
    os.environ.update(environment)
    try:
        from payagent.signer.pkcs11_token import Pkcs11Token
    except ImportError:
        raise TokenRefused("payagent's extra pkcs11 is missing: install cardano-payagent[pkcs11]") from None
    return Pkcs11Token(hsm)


def is_signature(signature: bytes, data: bytes, public_key: bytes) -> bool:
    """Whether libsodium accepts an Ed25519 signature."""
    try:
        return len(signature) == SIGNATURE_BYTES and crypto_sign_open(signature + data, public_key) == data
    except CryptoError:
        return False


class TokenProcess:
    """The signer's side. One request at a time is outstanding."""

    def __init__(self, sock: socket.socket, answer_s: int) -> None:
        self._socket, self._answer_s = sock, answer_s
        self._is_busy = self._is_wrong = False
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, _LOOK_US))

    def signature(self, key: int, public_key: bytes, tx_id: bytes) -> bytes:
        """Return a verified signature. The late answer to another request is dropped.

        Refused: `signer_away`; `keystore_invalid` if the HSM refuses the PIN; `signer_wrong`, then for good.
        Raises EOFError when the process has ended.
        """
        end_s, answer = time.monotonic() + self._answer_s, b""
        while not answer.startswith(tx_id):
            self._require_right()
            if not self._is_busy:
                self._socket.send(bytes((key,)) + tx_id)
            self._is_busy = True
            with suppress(BlockingIOError):
                answer = _received(self._socket)
                self._is_busy = False
            if self._is_busy and time.monotonic() >= end_s:
                raise TokenAway(f"the HSM has not answered in {self._answer_s} s")
        signature = signature_of(answer[HASH_BYTES:])
        self._is_wrong = not is_signature(signature, tx_id, public_key)
        self._require_right()
        return signature

    def _require_right(self) -> None:
        if self._is_wrong:
            raise Refused("signer_wrong", "a signature of the HSM is not by the wallet's key")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A `wallet.keys.Signer` whose key is the HSM's, by its account."""

    process: TokenProcess
    number: int
    public_key: bytes

    @property
    def payment_key_hash(self) -> bytes:
        return key_hash(self.public_key)

    def sign(self, body: bytes, paid: int) -> bytes:
        """Sign any body, without checks. Refused: as `TokenProcess.signature`."""
        return self.process.signature(self.number, self.public_key, body_hash(body))


def started(
    make: Callable[[], HashSigner], pinned: tuple[bytes, ...], answer_s: int, daemon: socket.socket
) -> TokenProcess:
    """Start the token process, and wait until it has opened the HSM. `make` loads the module, in that process.

    `daemon`: the signer's socket, which is closed there. Refused: `signer_away`, `keystore_invalid`.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    if os.fork() == 0:
        try:
            daemon.close()
            ours.close()
            _confine(parent)
            serve(its, make, pinned)
        finally:
            os._exit(0)
    its.close()
    signature_of(_received(ours))
    return TokenProcess(ours, answer_s)


def _received(sock: socket.socket) -> bytes:
    """The next answer. Raises EOFError when the process has ended."""
    answer = sock.recv(MESSAGE_BYTES_MAX)
    if not answer:
        raise EOFError("the token process has ended")
    return answer


def _confine(parent: int) -> None:
    """Keep the memory unreadable, end with the signer, and start no program. Raises OSError if a step fails."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    before_the_secret()
    require_parent(parent)
    numbers = seccomp.here(_CALLS)
    denied = [(seccomp.JUMP_IF_EQUAL, len(numbers) - at, 0, number) for at, number in enumerate(numbers)]
    seccomp.install([*denied, (seccomp.RETURN, 0, 0, seccomp.ALLOW), (seccomp.RETURN, 0, 0, seccomp.DENY)])


def serve(sock: socket.socket, make: Callable[[], HashSigner], pinned: tuple[bytes, ...]) -> None:
    """Open the HSM, say so, and answer requests until the other end is closed.

    While the HSM is away, it is asked again after pauses of 1 s that grow to `PAUSE_MAX_S`.
    """
    try:
        token = make()
        if token.keys() != pinned:
            raise TokenRefused("the HSM has another key than keystore.json")
    except Refused as refused:
        sock.send(REFUSED + packed(refused))
        return
    sock.send(SIGNED)
    why, pause_s, until_s = "", 0.0, 0.0
    while message := sock.recv(MESSAGE_BYTES_MAX):
        key, tx_id, is_pause = message[0], message[1:], time.monotonic() < until_s
        try:
            if len(tx_id) != HASH_BYTES or key >= len(pinned):
                raise TokenRefused("the signer asks for more than the signature of a transaction")
            if is_pause:
                raise TokenAway(why)
            sock.send(tx_id + SIGNED + token.sign_hash(key, tx_id))
            pause_s = 0.0
        except TokenAway as away:
            if not is_pause:
                why, pause_s = away.detail, min(max(2 * pause_s, 1.0), PAUSE_MAX_S)
                until_s = time.monotonic() + pause_s
            sock.send(tx_id + REFUSED + packed(away))
        except Refused as refused:
            sock.send(tx_id + REFUSED + packed(refused))
            return  # nobody tries the PIN again
