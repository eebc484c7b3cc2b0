"""What two other programs read in a transaction: the Evolution SDK (npm, pinned) and pycardano.

`evolution` and `pycardano` return the same for bytes that both decode. Nothing of payagent is imported here.
"""

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pycardano as oracle
import pytest
from ledger_check.txkit import COINS_PER_BYTE, FEE_A, FEE_B
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

HERE = Path(__file__).parent
IS_THERE = shutil.which("node") is not None and (HERE / "node_modules" / "@evolution-sdk").is_dir()
needs_evolution = pytest.mark.skipif(not IS_THERE, reason="NOT RUN: node + the Evolution SDK missing")


@dataclass(frozen=True)
class DecodedOutput:
    """`minimum` is the least lovelace that such an output may hold."""

    address: str
    lovelace: int
    assets: dict[str, int]
    minimum: int


@dataclass(frozen=True)
class Decoded:
    """`signers` are the public keys whose signatures hold. `networks` are those of the addresses and of the body.

    `encoded` is the transaction as the decoder writes it again.
    """

    tx_id: str
    signers: tuple[str, ...]
    networks: frozenset[int]
    fee: int
    minimum_fee: int
    outputs: tuple[DecodedOutput, ...]
    encoded: bytes


def evolution(transactions: Iterable[bytes]) -> list[Decoded]:
    """Decode all of them in one node process."""
    lines = "".join(f"{raw.hex()}\n" for raw in transactions)
    program = ["node", str(HERE / "decode.mjs")]
    done = subprocess.run(program, input=lines, capture_output=True, text=True, check=False, cwd=HERE)
    assert done.returncode == 0, done.stderr
    return [_of_json(json.loads(line)) for line in done.stdout.splitlines()]


def _of_json(read: dict[str, Any]) -> Decoded:
    outputs = tuple(
        DecodedOutput(
            address=one["address"],
            lovelace=int(one["lovelace"]),
            assets={name: int(units) for name, units in one["assets"].items()},
            minimum=int(one["minimum"]),
        )
        for one in read["outputs"]
    )
    return Decoded(
        tx_id=read["tx_id"],
        signers=tuple(read["signers"]),
        networks=frozenset(read["networks"]),
        fee=int(read["fee"]),
        minimum_fee=int(read["minimum_fee"]),
        outputs=outputs,
        encoded=bytes.fromhex(read["encoded"]),
    )


def pycardano(raw: bytes) -> Decoded:
    tx = oracle.Transaction.from_cbor(raw)
    body = tx.transaction_body
    addresses = [output.address for output in body.outputs]
    told = [] if body.network_id is None else [body.network_id]
    encoded = tx.to_cbor()
    return Decoded(
        tx_id=str(tx.id),
        signers=tuple(_signers(tx.transaction_witness_set.vkey_witnesses, body.to_cbor())),
        networks=frozenset(network.value for network in (*told, *(address.network for address in addresses))),
        fee=body.fee,
        minimum_fee=FEE_A * len(encoded) + FEE_B,
        outputs=tuple(_output(output) for output in body.outputs),
        encoded=encoded,
    )


def _signers(witnesses: Iterable[Any], body: bytes) -> Iterable[str]:
    for witness in witnesses:
        key = bytes(witness.vkey)
        try:
            VerifyKey(key).verify(blake2b(body, digest_size=32).digest(), bytes(witness.signature))
        except BadSignatureError:
            continue
        yield key.hex()


def _output(output: Any) -> DecodedOutput:
    held = output.amount.multi_asset.to_primitive()
    lovelace, output.amount.coin = output.amount.coin, 1_000_000  # a minimum is a number of four bytes
    return DecodedOutput(
        address=bytes(output.address).hex(),
        lovelace=lovelace,
        assets={(policy + name).hex(): units for policy, names in held.items() for name, units in names.items()},
        minimum=(160 + len(output.to_cbor())) * COINS_PER_BYTE,
    )
