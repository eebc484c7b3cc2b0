"""The program that holds the key: it opens the keystore, gives up what it can, and signs what its policy allows.

It is started by `handle` with its end of the line as standard input and nothing else. The first message is an
order to unlock, as JSON, and is answered in JSON; each later one is a body with how many of its outputs leave (two
bytes, then the body), and is answered by a signature, or by why there is none. It ends with the line.
May import: core, secretfile, wallet.keys, wallet.keystore, the rest of signer but `handle`. Never: writes a file,
a log or a line on a terminal, but to ask for the passphrase; tells more of an error than a refusal says.
"""

import getpass
import json
import os
import socket
from pathlib import Path
from typing import Any

from payagent.core.problem import Refused
from payagent.secretfile import read_secret_file
from payagent.signer.confine import before_the_secret, for_good
from payagent.signer.policy import Forbidden, Policy
from payagent.wallet.keys import Account
from payagent.wallet.keystore import unlock

MESSAGE_BYTES_MAX = 65_536
SIGNED, REFUSED = b"\0", b"\1"


def main() -> None:
    """Serve the line on standard input, then end at once: nothing is to be tidied up."""
    status = 1
    try:
        before_the_secret()
        with socket.socket(fileno=os.dup(0)) as line:
            with Path(os.devnull).open() as nothing:
                os.dup2(nothing.fileno(), 0)  # where there is no terminal to ask, nobody answers
            serve(line)
        status = 0
    finally:
        os._exit(status)


def serve(line: socket.socket) -> None:
    """One order to unlock, then bodies, until the other end is closed."""
    order: dict[str, Any] = json.loads(line.recv(MESSAGE_BYTES_MAX))
    try:
        account = _open(order)
    except Refused as refused:
        line.send(json.dumps({"code": refused.code, "detail": refused.detail}).encode())
        return
    signer, policy = account.signer, Policy(account.address.raw, order["caps"])
    told = {"address": account.address.text, "public_key": signer.public_key.hex(), "missing": for_good()}
    line.send(json.dumps(told).encode())
    while message := line.recv(MESSAGE_BYTES_MAX):
        paid, body = int.from_bytes(message[:2], "big"), message[2:]
        try:
            policy.require(body, paid)
        except Forbidden as forbidden:
            line.send(REFUSED + str(forbidden).encode())
        else:
            line.send(SIGNED + signer.sign(body, paid))


def _open(order: dict[str, Any]) -> Account:
    account = unlock(Path(order["keystore"]), _passphrase(order["passphrase"]))
    if account.network.name != order["network"]:
        raise Refused("keystore_invalid", f"the keystore is of {account.network.name}, not of {order['network']}")
    if account.number != order["account"]:
        raise Refused("keystore_invalid", f"the keystore is of account {account.number}, see keystore.account")
    return account


def _passphrase(source: dict[str, Any] | None) -> str:
    if source is not None:
        return read_secret_file(Path(source["path"]), private=source["private"])
    try:
        return getpass.getpass("Passphrase of the keystore: ")
    except (OSError, EOFError):
        raise Refused("keystore_locked", "no terminal answers") from None
