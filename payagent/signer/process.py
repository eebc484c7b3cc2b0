"""The signer program: opens the keystore, drops privileges, and signs the bodies that its policy allows.

`launcher` starts it with its end of the socket pair as standard input, and nothing else. The protocol:
- The first message is a JSON order to unlock. The answer is JSON.
- Each later message is the account (one byte, counted from 0), the number of outputs that may leave it (two bytes,
  big-endian) and a body. The answer is SIGNED and a signature by that account's key, or REFUSED and the refusal in
  JSON.
- Where channels are on, a message may be CHANNEL, the account (one byte) and a request of `channels`. The answer
  is SIGNED and what was asked for, or REFUSED.
- The process ends when the socket is closed.

If the key is in an HSM, it starts the token process and asks that for each signature (`token`).

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
from payagent.signer.messages import CHANNEL, MESSAGE_BYTES_MAX, REFUSED, SIGNED, packed
from payagent.signer.policy import Policy, clocks_of
from payagent.signer.token import HashSigner, TokenKey, started
from payagent.wallet.keys import Account, SoftwareSigner
from payagent.wallet.keystore import Header, Hsm, enterprise_address, read_header, unlock


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
        accounts = _open(order, sock)
        clocks = clocks_of(SLOT_CLOCKS.get(order["network"]), _since_boot_s, time.time)
        policy = Policy(accounts[0].address.raw, order["caps"], order["day_caps"], clocks)
        policies = [policy.of_account(account.address.raw) for account in accounts]
        channels = _channels(order["channels"], accounts, policies)
        missing = _confine()
    except Refused as refused:
        sock.send(packed(refused))
        return
    public = [{"address": one.address.text, "public_key": one.signer.public_key.hex()} for one in accounts]
    sock.send(json.dumps({"accounts": public, "missing": missing, "pid": pid}).encode())
    while message := sock.recv(MESSAGE_BYTES_MAX):
        account, paid, body = message[0], int.from_bytes(message[1:3], "big"), message[3:]
        try:
            if channels and account == CHANNEL:
                answer = SIGNED + channels[message[1]](message[2:])
            else:
                policies[account].admit(body, paid)
                answer = SIGNED + accounts[account].signer.sign(body, paid)
        except Refused as refused:
            answer = REFUSED + packed(refused)
        sock.send(answer)


def _channels(
    rules: dict[str, Any] | None, accounts: tuple[Account, ...], policies: list[Policy]
) -> list[Callable[[bytes], bytes]]:
    """What answers the requests of each account's channels; nothing where channels are off."""
    if rules is None:
        return []
    from payagent.signer.channels import Channels, Windows

    windows = Windows(rules)
    answers: list[Callable[[bytes], bytes]] = []
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


def _since_boot_s() -> float:
    """Return the seconds since boot. Nobody can set this clock, and it counts suspended time."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _open(order: dict[str, Any], sock: socket.socket) -> tuple[Account, ...]:
    path = Path(order["keystore"])
    header = read_header(path)
    if header.hsm is None:
        accounts = unlock(path, _secret(order["secret"], "Passphrase of the keystore: "), order["accounts"])
    if header.network.name != order["network"]:
        raise Refused("keystore_invalid", f"the keystore is for {header.network.name}, not {order['network']}")
    if header.account != order["account"]:
        raise Refused("keystore_invalid", f"the keystore is for account {header.account}: see keystore.account")
    return accounts if header.hsm is None else _open_hsm(header, header.hsm, order, sock)


def _open_hsm(header: Header, hsm: Hsm, order: dict[str, Any], sock: socket.socket) -> tuple[Account, ...]:
    """Start the token process. The accounts are the keys that the keystore names, in its order."""
    if order["accounts"] > len(hsm.keys):
        raise Refused("keystore_invalid", f"wallet.accounts is {order['accounts']}, it names {len(hsm.keys)} keys")
    pin = _secret(order["secret"], "PIN of the HSM: ")

    network, keys = header.network, hsm.public_keys

    def make() -> HashSigner:
        from payagent.signer.pkcs11_token import Pkcs11Token

        token = Pkcs11Token(hsm, order["hsm"]["environment"], network)
        token.log_in(pin)
        return token

    process = started(make, keys, order["hsm"]["answer_s"], sock)
    return tuple(
        Account(network, number, enterprise_address(network, key), TokenKey(process, number, key))
        for number, key in enumerate(keys[: order["accounts"]])
    )


def _secret(source: dict[str, Any] | None, prompt: str) -> str:
    if source is not None:
        return read_secret_file(Path(source["path"]), private=source["private"])
    try:
        return getpass.getpass(prompt)
    except (OSError, EOFError):
        raise Refused("keystore_locked", "there is no terminal to ask on") from None
