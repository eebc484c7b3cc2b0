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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from payagent import seccomp
from payagent.core.problems import Refused
from payagent.signer.hardening import before_the_secret, require_parent
from payagent.signer.messages import MESSAGE_BYTES_MAX, REFUSED, SIGNED, packed, signature_of, unpacked
from payagent.wallet.keys import body_hash, key_hash

HASH_BYTES, SIGNATURE_BYTES, PAUSE_MAX_S = 32, 64, 60.0
_LOOK_US = 50_000  # the confined signer cannot poll: it looks at the time as often

# execve, execveat, ptrace, process_vm_readv, process_vm_writev, mount, move_mount, bpf
_CALLS = {
    "x86_64": (59, 322, 101, 310, 311, 165, 429, 321),
    "aarch64": (221, 281, 117, 270, 271, 40, 429, 280),
}
"""The numbers of the denied system calls, by architecture."""


class TokenAway(Refused):
    """`signer_away`: the HSM cannot sign now, and may be back by itself."""


class TokenRefused(Refused):
    """`keystore_invalid`: the HSM has another PIN or key, which only a person mends."""


class HashSigner(Protocol):
    """Keys in hardware or in a service, which sign hashes. Both methods raise `TokenAway` or `TokenRefused`."""

    def keys(self) -> tuple[bytes, ...]:
        """The Ed25519 public keys, by account. Each has 32 bytes."""

    def sign_hash(self, key: int, tx_id: bytes) -> bytes:
        """Return the Ed25519 signature (RFC 8032, 64 bytes) over the 32 bytes, by the key of this account."""


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
        """Return a verified signature. The late answer to another request is dropped, unless it ends the process.

        Refused: `signer_away`; `keystore_invalid` if the HSM refuses the PIN; `signer_wrong`, then always.
        Raises OSError when the process has ended.
        """
        end_s, answer = time.monotonic() + self._answer_s, b""
        while not answer.startswith(tx_id):
            if not self._is_busy:
                self._socket.send(bytes((key,)) + tx_id)
            self._is_busy = True
            with suppress(BlockingIOError):
                answer = self._socket.recv(MESSAGE_BYTES_MAX)
                self._is_busy = False
            if not self._is_busy and answer[HASH_BYTES:].startswith(REFUSED):
                refused = unpacked(answer[HASH_BYTES + 1 :])
                if refused.code == "keystore_invalid":
                    raise refused
            if self._is_busy and time.monotonic() >= end_s:
                raise TokenAway("signer_away", f"the HSM has not answered in {self._answer_s} s")
        signature = signature_of(answer[HASH_BYTES:])
        self._is_wrong = self._is_wrong or not is_signature(signature, tx_id, public_key)
        if self._is_wrong:
            raise Refused("signer_wrong", "a signature of the HSM is not by the wallet's key")
        return signature


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
    signature_of(ours.recv(MESSAGE_BYTES_MAX))
    return TokenProcess(ours, answer_s)


def _confine(parent: int) -> None:
    """Keep the memory unreadable, end with the signer, and start no program. Raises OSError if a step fails."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    before_the_secret()
    require_parent(parent)
    seccomp.install(seccomp.among(_CALLS, seccomp.DENY, seccomp.ALLOW))


def serve(sock: socket.socket, make: Callable[[], HashSigner], pinned: tuple[bytes, ...]) -> None:
    """Open the HSM, say so, and answer requests until the other end is closed.

    While the HSM is away, it is asked again after pauses of 1 s that grow to `PAUSE_MAX_S`.
    """
    try:
        token = make()
        if token.keys() != pinned:
            raise TokenRefused("keystore_invalid", "the HSM has another key than keystore.json")
    except Refused as refused:
        sock.send(REFUSED + packed(refused))
        return
    sock.send(SIGNED)
    why, pause_s, until_s = "", 0.0, 0.0
    while message := sock.recv(MESSAGE_BYTES_MAX):
        key, tx_id, is_pause = message[0], message[1:], time.monotonic() < until_s
        try:
            if len(tx_id) != HASH_BYTES or key >= len(pinned):
                raise TokenRefused("keystore_invalid", "the signer asks for no signature of a transaction")
            if is_pause:
                raise TokenAway("signer_away", why)
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
