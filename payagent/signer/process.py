"""The signer program: opens the keystore, drops privileges, and signs the bodies that its policy allows.

`launcher` starts it with its end of the socket pair as standard input, and nothing else. The protocol:
- The first message is a JSON order to unlock. The answer is JSON.
- Each later message is the account (one byte, counted from 0), the number of outputs that may leave it (two bytes,
  big-endian) and a body. The answer is SIGNED and a signature by that account's key, or REFUSED and the refusal in
  JSON.
- Where channels are on, a message may be CHANNEL, the account (one byte) and a request of `channels`. The answer
  is SIGNED and what was asked for, or REFUSED.
- The process ends when the socket is closed.

Never: writes a file, a log, or to a terminal (except the passphrase prompt); reveals an error beyond its refusal.
"""

import getpass
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from payagent.core.network import SLOT_CLOCKS
from payagent.core.problems import Refused
from payagent.secret_file import read_secret_file
from payagent.signer.hardening import for_good
from payagent.signer.policy import Policy, clocks_of
from payagent.wallet.keys import Account, SoftwareSigner
from payagent.wallet.keystore import unlock

MESSAGE_BYTES_MAX = 65_536
SIGNED, REFUSED = b"\0", b"\1"
CHANNEL = 255
"""In place of an account's number."""


def main() -> None:
    """Serve the socket on standard input, then exit at once without cleanup."""
    status = 1
    try:
        with socket.socket(fileno=os.dup(0)) as sock:
            with Path(os.devnull).open("r+b", buffering=0) as null:
                # No prompt on standard input, and no traceback on stderr that could reveal a secret.
                os.dup2(null.fileno(), 0)
                os.dup2(null.fileno(), 2)
            serve(sock)
        status = 0
    finally:
        os._exit(status)


def serve(sock: socket.socket) -> None:
    """Handle one order to unlock, then bodies, until the other end is closed."""
    order: dict[str, Any] = json.loads(sock.recv(MESSAGE_BYTES_MAX))
    pid = os.getpid()  # before `_confine`, which forbids getpid too
    try:
        accounts = _open(order)
        clocks = clocks_of(SLOT_CLOCKS.get(order["network"]), _since_boot_s, time.time)
        policy = Policy(accounts[0].address.raw, order["caps"], order["day_caps"], clocks)
        policies = [policy.of_account(account.address.raw) for account in accounts]
        channels = _channels(order["channels"], accounts, policies)
        missing = _confine()
    except Refused as refused:
        sock.send(_refusal(refused))
        return
    public = [{"address": one.address.text, "public_key": one.signer.public_key.hex()} for one in accounts]
    sock.send(json.dumps({"accounts": public, "missing": missing, "pid": pid}).encode())
    while message := sock.recv(MESSAGE_BYTES_MAX):
        account, paid, body = message[0], int.from_bytes(message[1:3], "big"), message[3:]
        try:
            if channels and account == CHANNEL:
                sock.send(SIGNED + channels[message[1]](message[2:]))
                continue
            policies[account].admit(body, paid)
        except Refused as refused:
            sock.send(REFUSED + _refusal(refused))
        else:
            sock.send(SIGNED + accounts[account].signer.sign(body, paid))


def _channels(
    rules: dict[str, Any] | None, accounts: tuple[Account, ...], policies: list[Policy]
) -> list[Callable[[bytes], bytes]]:
    """What answers the requests of each account's channels; nothing where channels are off."""
    if rules is None:
        return []
    from payagent.signer.channels import Channels, Windows

    windows, answers = Windows(rules), []
    for account, policy in zip(accounts, policies, strict=True):
        if not isinstance(account.signer, SoftwareSigner):
            why = "channels.enabled: a key in an HSM signs no vouchers. Write enabled = false"
            raise Refused("config_invalid", why)
        answers.append(Channels(rules, account.signer, policy, windows).answer)
    return answers


def _confine() -> list[str]:
    try:
        return for_good()
    except OSError as error:
        raise Refused("signer_lost", f"its process could not be confined: {error.strerror}") from None


def _refusal(refused: Refused) -> bytes:
    return json.dumps({"name": refused.name, "detail": refused.detail, "context": refused.context}).encode()


def _since_boot_s() -> float:
    """Return the seconds since boot. Nobody can set this clock, and it counts suspended time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _open(order: dict[str, Any]) -> tuple[Account, ...]:
    accounts = unlock(Path(order["keystore"]), _passphrase(order["passphrase"]), order["accounts"])
    account = accounts[0]
    if account.network.name != order["network"]:
        raise Refused("keystore_invalid", f"the keystore is for {account.network.name}, not {order['network']}")
    if account.number != order["account"]:
        raise Refused("keystore_invalid", f"the keystore is for account {account.number}: see keystore.account")
    return accounts


def _passphrase(source: dict[str, Any] | None) -> str:
    if source is not None:
        return read_secret_file(Path(source["path"]), private=source["private"])
    try:
        return getpass.getpass("Passphrase of the keystore: ")
    except (OSError, EOFError):
        raise Refused("keystore_locked", "there is no terminal to ask on") from None
