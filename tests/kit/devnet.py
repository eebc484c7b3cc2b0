"""A wallet of one key with a transaction builder of its own (cbor2, PyNaCl), for the devnet's HTTP tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import cbor2
import httpx
from nacl.signing import SigningKey

from kit.http import NO_TLS
from payagent.core.address import Address, encode_address
from payagent.devnet.merchant import role_address
from payagent.devnet.server import Devnet, DevnetThread

FEE_LOVELACE = 200_000
POLICY = "ab" * 28
TOKEN = POLICY + b"TOK".hex()

Output = tuple[bytes, int, Mapping[str, int]]
Ref = tuple[str, int]


class HandClock:
    """A clock in milliseconds that only a test moves."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def forward(self, seconds: int) -> None:
        self.now_ms += seconds * 1000


def settlements(devnet: DevnetThread) -> int:
    """How often merchants were paid, as the chain has it with all that was submitted: they spend nothing."""

    def count(running: Devnet) -> int:
        running.node.make_blocks(1)
        return len(list(running.chain.utxos_at(role_address("pay_to").raw)))

    return devnet.run(count)


def key_hash(data: bytes) -> bytes:
    return blake2b(data, digest_size=28).digest()


@dataclass(frozen=True)
class Payer:
    """One key and its enterprise address."""

    key: SigningKey

    @property
    def address(self) -> Address:
        return encode_address(b"\x60" + key_hash(bytes(self.key.verify_key)))


def payer(name: str) -> Payer:
    return Payer(SigningKey(blake2b(name.encode(), digest_size=32).digest()))


def ada(address: bytes, lovelace: int) -> Output:
    return (address, lovelace, {})


def _output(output: Output | Mapping[int, object]) -> Mapping[int, object]:
    if isinstance(output, Mapping):
        return output
    address, lovelace, held = output
    if not held:
        return {0: address, 1: lovelace}
    assets: dict[bytes, dict[bytes, int]] = {}
    for unit, units in held.items():
        assets.setdefault(bytes.fromhex(unit[:56]), {})[bytes.fromhex(unit[56:])] = units
    return {0: address, 1: [lovelace, assets]}


def signed(
    who: Payer,
    inputs: Sequence[Ref],
    outputs: Sequence[Output | Mapping[int, object]],
    fee: int = FEE_LOVELACE,
    ttl: int | None = None,
) -> tuple[str, bytes]:
    """A signed transaction: (id, bytes). An output may be given as the map of its parts."""
    body: dict[int, object] = {
        0: cbor2.CBORTag(258, [[bytes.fromhex(tx_id), index] for tx_id, index in inputs]),
        1: [_output(output) for output in outputs],
        2: fee,
    }
    if ttl is not None:
        body[3] = ttl
    raw_body = cbor2.dumps(body)
    tx_id = blake2b(raw_body, digest_size=32).digest()
    witness = [bytes(who.key.verify_key), who.key.sign(tx_id).signature]
    raw = b"\x84" + raw_body + cbor2.dumps({0: cbor2.CBORTag(258, [witness])}) + b"\xf5\xf6"
    return tx_id.hex(), raw


@dataclass
class Purse:
    """A payer on a running devnet that spends whole UTxOs over HTTP and keeps the change."""

    who: Payer
    devnet: DevnetThread

    def control(self, name: str, **body: object) -> dict[str, object]:
        answer = httpx.post(f"{self.devnet.origin}/devnet/{name}", json=body, verify=NO_TLS)
        answer.raise_for_status()
        return dict(answer.json())

    def state(self) -> dict[str, object]:
        return dict(httpx.get(f"{self.devnet.origin}/devnet/state", verify=NO_TLS).json())

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.devnet.chain_url + path, verify=NO_TLS)

    def fund(self, *coins_lovelace: int, assets: Mapping[str, int] | None = None) -> None:
        named = {unit: str(units) for unit, units in (assets or {}).items()}
        for lovelace in coins_lovelace:
            self.control("faucet", address=self.who.address.text, lovelace=str(lovelace), assets=named)
        self.control("blocks", count=1)

    def coins(self) -> list[Ref]:
        rows = self.get(f"/addresses/{self.who.address.text}/utxos").json()
        return [(row["tx_hash"], row["output_index"]) for row in rows]

    def build(self, outputs: Sequence[Output], coin: int = 0, ttl: int | None = None) -> tuple[str, bytes]:
        """Build a payment of the outputs from one UTxO, with the change back to us."""
        rows = self.get(f"/addresses/{self.who.address.text}/utxos").json()
        value = {row["unit"]: int(row["quantity"]) for row in rows[coin]["amount"]}
        left = value.pop("lovelace") - FEE_LOVELACE - sum(lovelace for _, lovelace, _ in outputs)
        for _, _, held in outputs:
            for unit, units in held.items():
                value[unit] -= units
        change = (self.who.address.raw, left, {unit: units for unit, units in value.items() if units})
        ref = (rows[coin]["tx_hash"], rows[coin]["output_index"])
        return signed(self.who, [ref], [*outputs, change], ttl=ttl)

    def submit(self, raw: bytes, timeout_s: float = 60.0) -> httpx.Response:
        headers, url = {"content-type": "application/cbor"}, self.devnet.chain_url + "/tx/submit"
        return httpx.post(url, content=raw, headers=headers, timeout=timeout_s, verify=NO_TLS)

    def pay(self, outputs: Sequence[Output], blocks: int = 1) -> str:
        """Pay and make some blocks; return the transaction's id."""
        tx_id, raw = self.build(outputs)
        answer = self.submit(raw)
        assert answer.status_code == 200, answer.text
        if blocks:
            self.control("blocks", count=blocks)
        return tx_id
