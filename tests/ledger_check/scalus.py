"""The independent judge: the scalus ledger (npm, pinned) in one node process, for tests only.

It has its own implementation of the Conway rules in another language, with mainnet's parameters baked in. Three
rules of the real decoder are missing from it, and it refuses a transaction of exactly 16385 bytes, which is
legal; what is missing is checked here beside it, and that one refusal is taken back. It cannot read units or
lovelace from 2**63 on (the real ledger can, to 2**64 - 1): such a transaction is refused with an error of
"OverLong", which says nothing of it. Nothing of payagent is imported here.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import pytest
from ledger_check.raw import encode_head, encode_output, parse

HERE = Path(__file__).parent
NOT_RUN = "NOT RUN: node + scalus missing"
OutRef = tuple[str, int]


class OutputLike(Protocol):
    """What `encode_output` reads of an output: the devnet's TxOut has this shape."""

    @property
    def address(self) -> bytes: ...
    @property
    def lovelace(self) -> int: ...
    @property
    def assets(self) -> Mapping[str, int]: ...


def available() -> bool:
    """Whether node and the pinned scalus are installed."""
    return shutil.which("node") is not None and (HERE / "node_modules" / "scalus").is_dir()


needs_scalus = pytest.mark.skipif(not available(), reason=NOT_RUN)


class Scalus:
    """One node process; use it as a context manager and keep it for many transactions."""

    def __init__(self) -> None:
        node = shutil.which("node")
        if node is None:
            raise RuntimeError(NOT_RUN)
        self._process = subprocess.Popen(
            [node, str(HERE / "check.mjs")], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._slot = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def validate(
        self, tx: bytes, utxos: Mapping[OutRef, bytes | OutputLike], slot: int, network_id: int
    ) -> str | None:
        """Judge one transaction against a state of its own; None when it is valid, else the reason.

        `utxos` may hold any number of outputs, only those that the transaction spends are sent over.
        """
        try:
            refs = [ref for ref in _inputs_of(tx) if ref in utxos]
        except (ValueError, TypeError, KeyError, IndexError) as error:
            return f"strict: not a transaction: {error}"
        self.open({ref: utxos[ref] for ref in refs}, slot, network_id)
        return self.submit(tx)

    def open(self, utxos: Mapping[OutRef, bytes | OutputLike], slot: int, network_id: int) -> None:
        """Start a new state with these outputs at this slot; `submit` then changes it."""
        entries = b"".join(_encode_entry(ref, output) for ref, output in utxos.items())
        encoded = encode_head(5, len(utxos)) + entries
        if error := self._ask({"op": "open", "network": network_id, "utxos": encoded.hex()}):
            raise ValueError(f"scalus cannot read the outputs: {error}")
        self._slot = slot

    def tick(self, slot: int) -> None:
        """Set the state's slot."""
        self._slot = slot

    def submit(self, tx: bytes) -> str | None:
        """Apply one transaction to the state; None when it was valid, else the reason."""
        error = self._ask({"op": "submit", "tx": tx.hex(), "slot": self._slot})
        if error and len(tx) == 16385 and "Transaction size 16385 exceeds" in error:
            error = None
        return error or missing_decoder_rules(tx)

    def raw_verdict(self, tx: bytes) -> str | None:
        """What scalus itself says of a transaction on the state, with nothing added or taken back."""
        return self._ask({"op": "submit", "tx": tx.hex(), "slot": self._slot})

    def _ask(self, request: dict[str, Any]) -> str | None:
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the scalus process has no pipes")
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the scalus process ended")
        error = json.loads(line)["error"]
        return None if error is None else str(error)


def missing_decoder_rules(tx: bytes) -> str | None:
    """The rules of the real decoder (protocol version 9 and later) that scalus lacks."""
    body, witnesses = map(dict, parse(tx)[:2])
    for name, elements in (("input", body.get(0, [])), ("key witness", witnesses.get(0, []))):
        if len({tuple(element) for element in _items(elements)}) != len(_items(elements)):
            return f"strict: the same {name} twice in the set"
    for assets in _multi_assets(body.get(1, [])):
        for _, names in assets:
            if not names:
                return "strict: a policy without assets"
            if any(units == 0 for _, units in names):
                return "strict: zero units of an asset"
    return None


def _multi_assets(outputs: list[Any]) -> Iterator[list[Any]]:
    for output in outputs:
        value = output[1] if not isinstance(output[0], tuple) else dict(output)[1]
        if isinstance(value, list):
            yield value[1]


def _items(found: Any) -> list[Any]:
    return list(found[1] if isinstance(found, tuple) else found)


def _inputs_of(tx: bytes) -> list[OutRef]:
    return [(ref[0].hex(), ref[1]) for ref in _items(dict(parse(tx)[0])[0])]


def _encode_entry(ref: OutRef, output: bytes | OutputLike) -> bytes:
    raw = output if isinstance(output, bytes) else encode_output(output)
    return b"\x82\x58\x20" + bytes.fromhex(ref[0]) + encode_head(0, ref[1]) + raw
