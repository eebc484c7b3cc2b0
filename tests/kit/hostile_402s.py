"""Hostile 402s: each row is one valid invoice with one change, and the code by which it must be refused.

An id starts with its row of the threat model (A amounts, B addresses, C splits, D identity and time, E parsing).
`layer` says what refuses it: "dialect" the parser, "agent" only the whole daemon (limits, configured assets,
earlier invoices). The tests of the dialects and of the running daemon share the table.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pycardano.crypto.bech32 import Encoding, bech32_encode, convertbits

from payagent.core.network import Network

TOKEN = "aa" * 28 + "474f4c44"
TOKEN_DECIMALS = 0
OTHER_POLICY = "bb" * 28 + "474f4c44"
AMOUNT_UNITS = 10_000_000
BYRON = (
    "Ae2tdPwUPEZFRbyhz3cpfC2CumGzNkFBN2L42rcUc2yjQpEkxDbkPodpMAi",
    "37btjrVyb4KDXBNC4haBVPCrro8AQPHwvCMp3RFhhSVWwfFmZ6wwzSK6JK1hY6wHNmtrpTf1kdbva8TCneM2YsiXT7mrzT21EacHnPpz5YyUdj64na",
    "DdzFFzCqrhsw3prhfMFDNFowbzUku3QmrMwarfjUbWXRisodn97R436SHc1rimp4MhPNmbdYb1aTdqtGSJixMVMi5MkArDQJ6Sc1n3Ez",
)
JSON = {"content-type": "application/json"}

Layer = Literal["dialect", "agent"]


@dataclass(frozen=True)
class Hostile:
    """One 402. `body_text` holds bytes that are not UTF-8 as surrogates (`raw` has the bytes)."""

    id: str
    status: int
    headers: dict[str, str]
    body_text: str
    code: str
    base: str = ""
    layer: Layer = "dialect"

    @property
    def raw(self) -> bytes:
        return self.body_text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Base:
    """A valid 402 that must be accepted, so that a row is refused for its one change and nothing else."""

    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))

    @property
    def text(self) -> str:
        return json.dumps(self.body)


def address(network: Network, kind: int, fill: int, *, size: int | None = None, hrp: str | None = None) -> str:
    """An address of any CIP-19 type, honest or not, by an encoder that is not payagent's."""
    size = size if size is not None else (57 if kind < 4 else 29)
    raw = bytes([kind << 4 | network.network_id]) + bytes([fill]) * (size - 1)
    return bech32(hrp or prefix_of(network), raw)


def prefix_of(network: Network) -> str:
    """The prefix of a network's addresses (CIP-19)."""
    return "addr" if network.network_id == 1 else "addr_test"


def bech32(hrp: str, raw: bytes, spec: Encoding = Encoding.BECH32) -> str:
    """The text of any bytes under any prefix."""
    return str(bech32_encode(hrp, convertbits(list(raw), 8, 5), spec))


def bases(network: Network, pay_to: str, now_ms: int) -> dict[str, Base]:
    """The valid invoices from which every row is made."""
    split = [{"address": address(network, 6, 0x51), "amountUnits": "2000000", "role": "platform"}]
    whole = [{"to": pay_to, "amount": "8000000"}, {"to": address(network, 6, 0x51), "amount": "2000000"}]
    ends = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=now_ms + 300_000)
    flux = {
        "invoiceId": "6aec41a2-1b",
        "amount": "10000000",
        "currency": "ADA",
        "payTo": pay_to,
        "chain": network.wire,
        "expiresAt": ends.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "splits": [{"to": address(network, 6, 0x51), "amount": "2000000", "role": "platform"}],
        "splitMode": "inclusive",
    }
    flux_headers = {
        "X-Invoice-Id": "6aec41a2-1b",
        "X-Pay-To": pay_to,
        "X-Amount": "10000000",
        "X-Asset": "ADA",
        "X-Chain": network.wire,
        "X-Timeout": "299",
    }
    return {
        "plain": Base(_tbackend(network, pay_to)),
        "split": Base(_tbackend(network, pay_to, split={"mode": "additional", "outputs": split})),
        "inclusive": Base(_tbackend(network, pay_to, split={"mode": "inclusive", "outputs": split})),
        "whole": Base(_tbackend(network, pay_to, outputs=whole)),
        "both": Base(_tbackend(network, pay_to, outputs=split, split={"mode": "additional", "outputs": split})),
        "token": Base(_tbackend(network, pay_to, asset=TOKEN, decimals=TOKEN_DECIMALS, lovelace=False)),
        "token_split": Base(
            _tbackend(
                network,
                pay_to,
                asset=TOKEN,
                decimals=TOKEN_DECIMALS,
                lovelace=False,
                split={"mode": "additional", "outputs": split},
            )
        ),
        "flux": Base(flux, JSON | flux_headers),
        "flux_bare": Base(flux),
    }


def _tbackend(
    network: Network, pay_to: str, *, asset: str = "ADA", decimals: int = 6, lovelace: bool = True, **extra: Any
) -> dict[str, Any]:
    return {
        "detail": {
            "version": "0.1",
            "invoiceId": "inv-1",
            "chain": network.wire,
            "asset": asset,
            "amountUnits": "10000000",
            "decimals": decimals,
            "payTo": pay_to,
            "timeout": 300,
            "extra": {"lovelace": lovelace, "babel": False, "partner": "demo", "batchTarget": 100, **extra},
        }
    }


class _Table:
    def __init__(self, network: Network, pay_to: str, own: str, now_ms: int) -> None:
        self.network, self.pay_to, self.own = network, pay_to, own
        self.bases = bases(network, pay_to, now_ms)
        self.now_ms = now_ms
        self.rows: list[Hostile] = []

    def set(self, id: str, code: str, base: str, path: str, value: Any, layer: Layer = "dialect") -> None:
        """Change one field; `path` is like detail.extra.split.outputs.0.amountUnits."""
        body = json.loads(self.bases[base].text)
        *parents, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        place = body
        for step in parents:
            place = place[step]
        place[last] = value
        self._add(id, code, base, json.dumps(body), layer=layer)

    def drop(self, id: str, code: str, base: str, path: str) -> None:
        """Remove one field."""
        body = json.loads(self.bases[base].text)
        *parents, last = path.split(".")
        place = body
        for step in parents:
            place = place[step]
        del place[last]
        self._add(id, code, base, json.dumps(body))

    def text(self, id: str, code: str, base: str, old: str, new: str) -> None:
        """Replace one part of the JSON text."""
        before = self.bases[base].text
        if before.count(old) != 1:
            raise ValueError(f"{id}: {old!r} is {before.count(old)} times in the base")
        self._add(id, code, base, before.replace(old, new))

    def whole(self, id: str, code: str, change: Callable[[str], str], base: str = "plain") -> None:
        """Change the text as a whole."""
        self._add(id, code, base, change(self.bases[base].text))

    def body(
        self, id: str, code: str, body: Any, headers: dict[str, str] | None = None, status: int = 402
    ) -> None:
        """Replace the whole body; a str is sent as it is."""
        text = body if isinstance(body, str) else json.dumps(body)
        self.rows.append(Hostile(id, status, JSON if headers is None else headers, text, code))

    def header(self, id: str, code: str, base: str, name: str, value: str) -> None:
        """Add or change one header."""
        kept = {key: old for key, old in self.bases[base].headers.items() if key.lower() != name.lower()}
        self.rows.append(Hostile(id, 402, kept | {name: value}, self.bases[base].text, code, base))

    def status(self, id: str, code: str, status: int) -> None:
        base = self.bases["plain"]
        self.rows.append(Hostile(id, status, base.headers, base.text, code, "plain"))

    def _add(self, id: str, code: str, base: str, text: str, layer: Layer = "dialect") -> None:
        self.rows.append(Hostile(id, 402, self.bases[base].headers, text, code, base, layer))


def hostile_402s(network: Network, pay_to: str, own: str, now_ms: int) -> list[Hostile]:
    """Every row, for a daemon on `network` that is the wallet `own`, when the 402 is received at `now_ms`.

    The merchant has no split_mode. "agent" rows depend on the daemon's settings: OTHER_POLICY has no limit, a
    payment of 40 billion ADA is above any, TOKEN has 0 decimals; D1's row comes after the plain base was paid.
    """
    table = _Table(network, pay_to, own, now_ms)
    for add in (
        _amounts,
        _assets,
        _chains,
        _addresses,
        _modes,
        _shares,
        _time,
        _flux,
        _text,
        _bodies,
        _fields,
        _ids,
    ):
        add(table)
    return table.rows


NOT = "invoice_invalid/amount"
RANGE = "invoice_invalid/amount_range"
SPLIT = "split_ambiguous"
TERMS = "terms_not_understood"
STRICT = "invoice_invalid/json"
UNITS = '"amountUnits": "10000000"'


def _amounts(t: _Table) -> None:
    texts = {
        "negative": "-5",
        "minus-zero": "-0",
        "plus": "+5",
        "leading-zeros": "0005",
        "underscore": "1_000",
        "space-inside": "10 000000",
        "space-before": " 10000000",
        "space-after": "10000000 ",
        "nbsp": "10000000\u00a0",
        "fullwidth": "\uff11\uff10\uff10\uff10\uff10\uff10\uff10\uff10",
        "arabic": "\u0661\u0662\u0663",
        "devanagari": "\u0967\u0968\u0969",
        "superscript": "1\u00b2",
        "empty": "",
        "words": "ten",
        "hex": "0x989680",
        "commas": "10,000,000",
        "exponent": "1e7",
        "point": "10000000.0",
        "ada": "10 ADA",
        "nan": "NaN",
        "decimal-bomb": "1E999999",
    }
    for name, text in texts.items():
        t.set(f"A1-{name}", NOT, "plain", "detail.amountUnits", text)
    t.set("A1-zero", RANGE, "plain", "detail.amountUnits", "0")
    t.set("A1-int-zero", RANGE, "plain", "detail.amountUnits", 0)
    t.set("A1-int-negative", NOT, "plain", "detail.amountUnits", -10_000_000)
    t.set("A1-newline", NOT, "plain", "detail.amountUnits", "10000000\n")
    t.set("A1-list", NOT, "plain", "detail.amountUnits", ["10000000"])
    t.set("A1-object", NOT, "plain", "detail.amountUnits", {"value": "10000000"})
    t.set("A1-null", "invoice_invalid/missing_field", "plain", "detail.amountUnits", None)
    t.drop("A1-absent", "invoice_invalid/missing_field", "plain", "detail.amountUnits")
    for name, number in {"half": "1.5", "exp": "1e7", "huge-exp": "1e400", "point-zero": "10000000.0"}.items():
        t.text(f"A2-{name}", NOT, "plain", UNITS, f'"amountUnits": {number}')
    t.text("A2-2-to-53", NOT, "plain", UNITS, '"amountUnits": 9007199254740993.0')
    t.set("A2-true", NOT, "plain", "detail.amountUnits", True)
    for number in ("NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x10", "1_0", "1.", "\uff11"):
        t.text(f"A2-raw-{number!a}", STRICT, "plain", UNITS, f'"amountUnits": {number}')
    t.text("A2-raw-minus-zero", RANGE, "plain", UNITS, '"amountUnits": -0')
    t.set("A3-text-5000-digits", RANGE, "plain", "detail.amountUnits", "9" * 5000)
    t.text("A3-int-4000-digits", RANGE, "plain", UNITS, '"amountUnits": ' + "9" * 4000)
    t.text("A3-int-5000-digits", NOT, "plain", UNITS, '"amountUnits": ' + "9" * 5000)
    t.set("A3-above-supply", RANGE, "plain", "detail.amountUnits", "45000000000000001")
    t.set("A3-2-to-63", RANGE, "token", "detail.amountUnits", str(2**63))
    t.set("A3-2-to-64-and-some", RANGE, "plain", "detail.amountUnits", str(2**64 + 10_000_000))
    for name, decimals in {"0": 0, "18": 18, "text": "6", "float": 6.0, "true": True, "minus": -6}.items():
        t.set(f"A4-decimals-{name}", "decimals_mismatch", "plain", "detail.decimals", decimals)
    t.set("A4-token-decimals", "decimals_mismatch", "token", "detail.decimals", 6)
    t.set("A4-over-every-limit", "limit_exceeded", "plain", "detail.amountUnits", "40000000000000000", "agent")


def _assets(t: _Table) -> None:
    wrong: dict[str, Any] = {
        "ticker": "USDM",
        "case": "Ada",
        "space": "ADA ",
        "cyrillic": "lovel\u0430ce",
        "empty": "",
        "upper-hex": TOKEN.upper(),
        "short-policy": TOKEN[:55],
        "name-33-bytes": "aa" * 28 + "00" * 33,
        "odd-name": TOKEN + "0",
        "two-dots": "aa" * 28 + "..474f4c44",
        "number": 5,
        "object": {"policy": "aa" * 28},
    }
    for name, asset in wrong.items():
        t.set(f"A5-{name}", "invoice_invalid/asset", "plain", "detail.asset", asset)
    t.drop("A5-absent", "invoice_invalid/missing_field", "plain", "detail.asset")
    t.set("A5-lovelace-flag-on-token", "invoice_invalid/contradiction", "token", "detail.extra.lovelace", True)
    t.set("A5-lovelace-flag-off", "invoice_invalid/contradiction", "plain", "detail.extra.lovelace", False)
    t.set("A5-lovelace-flag-text", "invoice_invalid/contradiction", "plain", "detail.extra.lovelace", "true")
    t.set("A5-same-name-other-policy", "asset_not_allowed", "token", "detail.asset", OTHER_POLICY, "agent")


def _chains(t: _Table) -> None:
    other = "cardano-mainnet" if t.network.name != "mainnet" else "cardano-preprod"
    t.set("B1-chain-other", "network_mismatch", "plain", "detail.chain", other)
    t.set("B1-chain-preview", "network_mismatch", "plain", "detail.chain", "cardano:preview")
    for chain in ("base", "cardano", "ethereum", t.network.wire.upper(), t.network.wire + " ", "", 1, ["cardano"]):
        t.set(f"B1-chain-{chain}", "invoice_invalid/chain", "plain", "detail.chain", chain)
    t.drop("B1-chain-absent", "invoice_invalid/missing_field", "plain", "detail.chain")


def _addresses(t: _Table) -> None:
    for id, code, value in _wrong_addresses(t):
        t.set(id, code, "plain", "detail.payTo", value)
    t.drop("B2-absent", "invoice_invalid/missing_field", "plain", "detail.payTo")
    in_split = "detail.extra.split.outputs.0.address"
    t.set("B5-own-in-split", "address_invalid/own", "split", in_split, t.own)
    t.set("B3-script-in-split", "address_invalid/script", "split", in_split, address(t.network, 7, 0x52))


def _wrong_addresses(t: _Table) -> list[tuple[str, str, Any]]:
    here, hrp = t.network, prefix_of(t.network)
    other_hrp = "addr" if here.network_id == 0 else "addr_test"
    key = bytes([0x60 | here.network_id]) + b"\x52" * 28
    honest = bech32(hrp, key)
    flipped = bytes([key[0] ^ 1]) + key[1:]
    stake = ("stake" if here.network_id else "stake_test", bytes([0xE0 | here.network_id]) + b"\x52" * 28)
    return [
        ("B1-other-network", "address_invalid/wrong_network", bech32(other_hrp, flipped)),
        ("B1-prefix-of-other-network", "address_invalid/wrong_prefix", bech32(other_hrp, key)),
        ("B1-header-of-other-network", "address_invalid/wrong_prefix", bech32(hrp, flipped)),
        ("B1-reserved-network", "address_invalid/wrong_prefix", bech32(hrp, bytes([0x65]) + key[1:])),
        ("B1-prefix-foo", "address_invalid/wrong_prefix", bech32("foo", key)),
        ("B1-prefix-addr-vkh", "address_invalid/wrong_prefix", bech32("addr_vkh", key)),
        ("B1-prefix-bc", "address_invalid/wrong_prefix", bech32("bc", key)),
        ("B2-no-prefix", "address_invalid/wrong_prefix", honest.rpartition("1")[2]),
        ("B2-byron-icarus", "address_invalid/byron", BYRON[0]),
        ("B2-byron-test", "address_invalid/byron", BYRON[1]),
        ("B2-byron-daedalus", "address_invalid/byron", BYRON[2]),
        ("B2-byron-header", "address_invalid/byron", address(here, 8, 0x52)),
        ("B2-stake", "address_invalid/stake", bech32(*stake)),
        ("B2-stake-as-addr", "address_invalid/stake", bech32(hrp, stake[1])),
        ("B2-stake-script", "address_invalid/stake", address(here, 15, 0x52)),
        ("B2-pointer-key", "address_invalid/pointer", address(here, 4, 0x01, size=32)),
        ("B2-pointer-script", "address_invalid/pointer", address(here, 5, 0x01, size=32)),
        *((f"B2-type-{kind}", "address_invalid/unknown_type", address(here, kind, 0x52)) for kind in range(9, 14)),
        ("B2-type-0-short", "address_invalid/wrong_length", address(here, 0, 0x52, size=29)),
        ("B2-type-6-long", "address_invalid/wrong_length", address(here, 6, 0x52, size=57)),
        ("B2-one-byte-more", "address_invalid/wrong_length", address(here, 6, 0x52, size=30)),
        ("B2-one-byte-less", "address_invalid/wrong_length", address(here, 0, 0x52, size=56)),
        ("B2-header-only", "address_invalid/wrong_length", address(here, 6, 0x52, size=1)),
        (
            "B2-one-letter-changed",
            "address_invalid/bad_checksum",
            honest[:-1] + ("q" if honest[-1] != "q" else "p"),
        ),
        ("B2-one-letter-less", "address_invalid/bad_checksum", honest[:-8] + honest[-7:]),
        ("B2-bech32m", "address_invalid/bad_checksum", bech32(hrp, key, Encoding.BECH32M)),
        ("B2-letter-outside", "address_invalid/bad_checksum", honest[:-3] + "b" + honest[-2:]),
        ("B2-padding", "address_invalid/bad_checksum", _padded(hrp, key)),
        ("B2-upper-case", "address_invalid/mixed_case", honest.upper()),
        (
            "B2-mixed-case",
            "address_invalid/mixed_case",
            honest[:-1] + honest[-1:].upper() if honest[-1].isalpha() else "Addr1",
        ),
        ("B2-space-before", "address_invalid/not_text", " " + honest),
        ("B2-space-after", "address_invalid/not_text", honest + " "),
        ("B2-nbsp", "address_invalid/not_text", honest + "\u00a0"),
        ("B2-zero-width", "address_invalid/not_text", honest[:9] + "\u200b" + honest[9:]),
        ("B2-cyrillic", "address_invalid/not_text", "\u0430" + honest[1:]),
        ("B2-long", "address_invalid/not_text", honest + "q" * 200),
        ("B2-empty", "address_invalid/not_text", ""),
        ("B2-number", "address_invalid/not_text", 5),
        ("B2-list", "address_invalid/not_text", [honest]),
        ("B2-object", "address_invalid/not_text", {"address": honest}),
        ("B2-hex", "address_invalid/wrong_prefix", "00" + key.hex().replace("1", "0")),
        *((f"B3-script-{kind}", "address_invalid/script", address(here, kind, 0x52)) for kind in (1, 2, 3, 7)),
        ("B5-own", "address_invalid/own", t.own),
    ]


def _padded(hrp: str, raw: bytes) -> str:
    """The same bytes, with padding bits that are not zero."""
    values = convertbits(list(raw), 8, 5)
    values[-1] |= 1
    return str(bech32_encode(hrp, values, Encoding.BECH32))


def _modes(t: _Table) -> None:
    share = t.bases["split"].body["detail"]["extra"]["split"]["outputs"][0]
    split = "detail.extra.split"
    t.drop("C1-no-mode", SPLIT, "split", f"{split}.mode")
    for name, mode in {"word": "exclusive", "case": "Inclusive", "true": True, "number": 1, "list": []}.items():
        t.set(f"C1-mode-{name}", SPLIT, "split", f"{split}.mode", mode)
    t.set("C1-mode-null", SPLIT, "split", f"{split}.mode", None)
    t.set("C1-two-modes", SPLIT, "split", f"{split}.splitMode", "additional")
    t.set("C1-mode-outputs-without-payTo", SPLIT, "split", f"{split}.mode", "outputs")
    t.set("C1-inclusive-takes-all", SPLIT, "inclusive", f"{split}.outputs.0.amountUnits", "10000000")
    t.set("C1-inclusive-takes-more", SPLIT, "inclusive", f"{split}.outputs.0.amountUnits", "10000001")
    t.set("C1-forms-disagree-on-units", SPLIT, "both", f"{split}.outputs.0.amountUnits", "2000001")
    t.set("C1-forms-disagree-on-address", SPLIT, "both", f"{split}.outputs.0.address", address(t.network, 6, 0x53))
    t.set("C1-forms-disagree-on-count", SPLIT, "both", "detail.extra.outputs", [])
    t.set("C1-second-form-empty", SPLIT, "split", "detail.extra.outputs", [])
    t.set("C1-whole-set-one-less", SPLIT, "whole", "detail.extra.outputs.1.amount", "1999999")
    t.set("C1-whole-set-one-more", SPLIT, "whole", "detail.extra.outputs.0.amount", "8000001")
    t.set("C1-whole-set-payTo-twice", SPLIT, "whole", "detail.extra.outputs.1.to", t.pay_to)
    t.set("C1-whole-set-without-payTo", SPLIT, "whole", "detail.extra.outputs.0.to", address(t.network, 6, 0x53))
    t.set("C1-bare-list-no-mode", SPLIT, "plain", "detail.extra.outputs", [share])
    for name, form in {
        "text": "20%",
        "number": 20,
        "true": True,
        "empty-object": {},
        "percent": {"percent": 20},
    }.items():
        t.set(f"C1-form-{name}", SPLIT, "plain", "detail.extra.split", form)
    t.set("C1-form-nested", SPLIT, "split", f"{split}.outputs", {"outputs": [share]})
    t.set("C1-form-unknown-key", SPLIT, "split", f"{split}.note", "x")
    t.set("C1-extra-list", SPLIT, "plain", "detail.extra", [share])


def _shares(t: _Table) -> None:
    share = t.bases["split"].body["detail"]["extra"]["split"]["outputs"][0]
    outputs, first = "detail.extra.split.outputs", "detail.extra.split.outputs.0"
    t.set("C2-same-address-twice", SPLIT, "split", outputs, [share, share])
    t.set("C2-payTo-as-split", SPLIT, "split", f"{first}.address", t.pay_to)
    t.set("C2-zero", RANGE, "split", f"{first}.amountUnits", "0")
    t.set("C2-negative", NOT, "split", f"{first}.amountUnits", "-2000000")
    t.set("C2-float", NOT, "split", f"{first}.amountUnits", 2.5)
    t.set("C2-units-null", NOT, "split", f"{first}.amountUnits", None)
    t.set("C2-overflow", RANGE, "split", f"{first}.amountUnits", str(45 * 10**15))
    t.set("C2-overflow-64-bit", RANGE, "token_split", f"{first}.amountUnits", str(2**63 - 1))
    t.set("C2-percent-text", SPLIT, "split", f"{first}.amountUnits", "20%")
    t.set("C2-below-min-utxo", "invoice_invalid/below_min_ada", "split", f"{first}.amountUnits", "1", "agent")
    t.set(
        "C2-17-splits",
        "invoice_invalid/too_many_outputs",
        "split",
        outputs,
        [_share(t.network, 0x60 + n) for n in range(17)],
    )
    t.set(
        "C2-16-splits-and-payTo",
        "invoice_invalid/too_many_outputs",
        "split",
        outputs,
        [_share(t.network, 0x60 + n) for n in range(16)],
    )
    t.set("C2-400-splits", "invoice_invalid/too_many_outputs", "split", outputs, [share] * 400)
    bare = {key: value for key, value in share.items() if key != "amountUnits"}
    for name in ("percent", "percentage", "bps", "share", "ratio"):
        t.set(f"C2-{name}", SPLIT, "split", first, {**bare, name: 20})
    for name, extra in {
        "two-addresses": {"to": share["address"]},
        "two-units": {"lovelace": "2000000"},
        "percent-beside": {"percent": 20},
        "memo": {"memo": "x"},
        "datum": {"datum": "d87980"},
        "role-number": {"role": 5},
        "role-long": {"role": "x" * 65},
    }.items():
        t.set(f"C2-entry-{name}", SPLIT, "split", first, {**share, **extra})
    t.set("C2-entry-without-address", SPLIT, "split", first, {"amountUnits": "2000000"})
    t.set("C2-entry-without-units", SPLIT, "split", first, bare)
    t.set("C2-entry-text", SPLIT, "split", first, share["address"])
    t.set("C2-entry-pair", SPLIT, "split", first, [share["address"], "2000000"])
    t.set("C2-entry-null", SPLIT, "split", first, None)
    t.set("C3-token-in-ada", SPLIT, "split", f"{first}.asset", TOKEN)
    t.set("C3-ada-in-token", SPLIT, "token_split", f"{first}.asset", "ADA")
    t.set("C3-other-policy", SPLIT, "token_split", f"{first}.asset", OTHER_POLICY)
    t.set(
        "C3-lovelace-in-token", SPLIT, "token_split", first, {"address": share["address"], "lovelace": "2000000"}
    )
    t.set("C3-ticker", "invoice_invalid/asset", "split", f"{first}.asset", "USDM")
    t.set("C3-no-asset", "invoice_invalid/asset", "split", f"{first}.asset", "")


def _share(network: Network, fill: int) -> dict[str, str]:
    return {"address": address(network, 6, fill), "amountUnits": "2000000"}


def _time(t: _Table) -> None:
    t.set("D1-same-id-other-terms", "terms_changed", "plain", "detail.amountUnits", "10000001", "agent")
    t.set("D3-zero", "invoice_expired", "plain", "detail.timeout", 0)
    t.set("D3-negative", "invoice_expired", "plain", "detail.timeout", -300)
    t.set("D3-too-short-to-sign", "invoice_expired", "plain", "detail.timeout", 119, "agent")
    for name, value in {"true": True, "text": "300", "float": 300.0, "list": [300]}.items():
        t.set(f"D3-{name}", NOT, "plain", "detail.timeout", value)
    t.set("D3-null", "invoice_invalid/missing_field", "plain", "detail.timeout", None)
    t.drop("D3-absent", "invoice_invalid/missing_field", "plain", "detail.timeout")
    t.set("D3-milliseconds", "invoice_invalid/missing_field", "plain", "detail.timeout", 300_000)
    t.set("D3-for-ever", "invoice_invalid/missing_field", "plain", "detail.timeout", 10**400)
    for name, text, code in [
        ("past", "2020-01-01T00:00:00.000Z", "invoice_expired"),
        ("year-9999", "9999-12-31T23:59:59.999Z", "invoice_invalid/missing_field"),
        ("no-zone", "2026-11-24T13:38:18.993", "invoice_invalid/missing_field"),
        ("offset", "2026-11-24T13:38:18.993+02:00", "invoice_invalid/missing_field"),
        ("leap-second", "2026-12-31T23:59:60.000Z", "invoice_invalid/missing_field"),
        ("no-such-day", "2026-02-30T00:00:00.000Z", "invoice_invalid/missing_field"),
        ("date", "2026-11-24", "invoice_invalid/missing_field"),
        ("word", "soon", "invoice_invalid/missing_field"),
        ("year-0", "0000-01-01T00:00:00.000Z", "invoice_invalid/missing_field"),
        ("other-digits", "\uff12026-11-24T13:38:18.993Z", "invoice_invalid/missing_field"),
    ]:
        t.set(f"D3-iso-{name}", code, "flux", "expiresAt", text)
    t.set("D3-iso-number", "invoice_invalid/missing_field", "flux", "expiresAt", t.now_ms + 300_000)
    t.drop("D3-iso-absent", "invoice_invalid/missing_field", "flux_bare", "expiresAt")
    t.header("D3-header-zero", "invoice_expired", "flux", "X-Timeout", "0")
    t.header("D3-header-negative", "invoice_expired", "flux", "X-Timeout", "-5")
    t.header("D3-header-word", NOT, "flux", "X-Timeout", "1e3")
    t.header("D3-header-for-ever", "invoice_invalid/missing_field", "flux", "X-Timeout", "999999999")


def _flux(t: _Table) -> None:
    other = "cardano:mainnet" if t.network.name != "mainnet" else "cardano:preprod"
    for name, value, code in [
        ("X-Invoice-Id", "6aec41a2-2b", "invoice_invalid/contradiction"),
        ("X-Pay-To", address(t.network, 6, 0x53), "invoice_invalid/contradiction"),
        ("X-Amount", "10000001", "invoice_invalid/contradiction"),
        ("X-Amount", "1e7", NOT),
        ("X-Asset", TOKEN, "invoice_invalid/contradiction"),
        ("X-Asset", "USDM", "invoice_invalid/asset"),
        ("X-Chain", other, "invoice_invalid/contradiction"),
        ("X-Chain", "base", "invoice_invalid/chain"),
        ("PAYMENT-REQUIRED", "eyJ9", "invoice_invalid/mixed_dialects"),
        ("X-402-Payment-Required", "materios", "invoice_invalid/mixed_dialects"),
        ("X-Payment-Required", "e30=", "invoice_invalid/mixed_dialects"),
    ]:
        t.header(f"D4-header-{name}-{value[:8]}", code, "flux", name, value)
    t.header(
        "D4-header-on-t-backend",
        "invoice_invalid/mixed_dialects",
        "plain",
        "X-Pay-To",
        address(t.network, 6, 0x53),
    )
    t.set("C1-flux-mode", SPLIT, "flux", "splitMode", "percentage")
    t.drop("C1-flux-no-mode", SPLIT, "flux", "splitMode")
    t.set("C1-flux-splits-false", SPLIT, "flux", "splits", False)
    t.set("C1-flux-object-and-mode", SPLIT, "flux", "splits", {"mode": "additional", "outputs": []})
    t.set("C2-flux-splits-take-all", SPLIT, "flux", "splits.0.amount", "10000000")
    t.set("C3-flux-currency", SPLIT, "flux", "splits.0.currency", TOKEN)
    t.set("A1-flux-amount", NOT, "flux_bare", "amount", "1_000")
    t.set("A4-flux-decimals", "decimals_mismatch", "flux", "decimals", 2)
    t.set("A5-flux-currency", "invoice_invalid/asset", "flux_bare", "currency", "USD")
    t.set("B1-flux-chain", "invoice_invalid/chain", "flux_bare", "chain", "base")
    for key in ("invoiceId", "amount", "currency", "payTo", "chain"):
        t.drop(f"E6-flux-without-{key}", "invoice_invalid/missing_field", "flux_bare", key)
    t.set("E6-flux-amountUnits", "invoice_invalid/mixed_dialects", "flux", "amountUnits", "10000000")
    t.set("E6-flux-extra", "invoice_invalid/mixed_dialects", "flux", "extra", {"outputs": []})
    t.set("E6-flux-fee", TERMS, "flux", "platformFee", "1000000")
    t.set("E6-flux-accepts", "invoice_invalid/mixed_dialects", "flux", "accepts", [])
    t.set("E5-flux-status", "not_an_invoice", "flux", "status", "submitted")


def _text(t: _Table) -> None:
    def unknown(value: str) -> Callable[[str], str]:
        return lambda text: text[:-1] + f', "note": {value}}}'

    t.whole("E1-64-KiB", "body_too_big", unknown('"' + "x" * 65_536 + '"'))
    t.whole("E1-spaces", "body_too_big", lambda text: text + " " * 65_536)
    t.whole("E2-17-deep", STRICT, unknown("[" * 16 + "]" * 16))
    t.whole("E2-20000-deep", STRICT, unknown("[" * 20_000 + "]" * 20_000))
    t.whole("E2-objects", STRICT, unknown('{"a":' * 5_000 + "1" + "}" * 5_000))
    t.whole("E2-never-closed", STRICT, unknown("[" * 20_000))
    t.text("E3-amount-twice", STRICT, "plain", UNITS, f'"amountUnits": "1", {UNITS}')
    t.text("E3-amount-twice-equal", STRICT, "plain", UNITS, f"{UNITS}, {UNITS}")
    t.text("E3-amount-twice-escaped", STRICT, "plain", UNITS, '"\\u0061mountUnits": "1", ' + UNITS)
    t.whole("E3-detail-twice", STRICT, lambda text: text[:-1] + ', "detail": {"status": "pending"}}')
    t.text("E3-in-a-split", STRICT, "split", '"amountUnits": "2000000"', '"amountUnits": "2000000", "role": "x"')
    t.whole("E3-in-ignored", STRICT, unknown('{"a": 1, "a": 1}'))
    t.whole("E4-latin-1", STRICT, unknown('"\udce9"'))
    t.whole("E4-overlong-utf-8", STRICT, unknown('"\udcc0\udcaf"'))
    t.whole("E4-bom", STRICT, lambda text: "\ufeff" + text)
    t.whole("E4-utf-16", STRICT, lambda text: text.encode("utf-16").decode("utf-8", "surrogateescape"))
    t.whole("E4-utf-16-no-bom", STRICT, lambda text: text.encode("utf-16-le").decode("utf-8", "surrogateescape"))
    t.whole("E4-nul-raw", STRICT, unknown('"a\x00b"'))
    t.whole("E4-nul-escaped", STRICT, unknown('"a\\u0000b"'))
    t.whole("E4-nul-after", STRICT, lambda text: text + "\x00")
    t.whole("E4-newline-raw", STRICT, unknown('"a\nb"'))
    t.whole("E4-escape-character", STRICT, unknown('"\\u001b[2J"'))
    t.whole("E4-half-character", STRICT, unknown('"\\ud800"'))
    t.whole("E4-half-character-in-key", STRICT, lambda text: text[:-1] + ', "\\udc00": 1}')
    t.whole("E4-cut-short", STRICT, lambda text: text[:-2])
    t.whole("E4-trailing", STRICT, lambda text: text + "x")
    t.whole("E4-two-values", STRICT, lambda text: text + text)
    t.whole("E4-trailing-comma", STRICT, lambda text: text[:-1] + ",}")
    t.whole("E4-single-quotes", STRICT, lambda text: text.replace('"', "'"))
    t.whole("E4-comment", STRICT, lambda text: text + "/* paid */")
    t.whole("E4-json-lines", STRICT, lambda text: text + "\n" + text)


def _bodies(t: _Table) -> None:
    html = "<!doctype html><html><body><h1>402 Payment Required</h1></body></html>"
    none, no, shape = "not_an_invoice", "wallet_address_required", "invoice_invalid/body"
    text_html, wanted = {"content-type": "text/html"}, "wallet_address_required_for_prepaid_batches"
    t.body("E5-html", shape, html, text_html)
    t.body("E5-html-as-json", STRICT, html)
    t.body("E5-empty", shape, "", {})
    t.body("E5-empty-json", STRICT, "")
    t.body("E5-spaces", shape, " \n", {})
    t.body("E5-text", shape, "Payment Required", {"content-type": "text/plain"})
    values: dict[str, Any] = {
        "null": None,
        "number": 402,
        "text": '"pay"',
        "list": [],
        "object": {},
        "true": True,
    }
    for name, value in values.items():
        t.body(f"E5-json-{name}", shape, value)
    t.body("E5-list-of-invoices", shape, [t.bases["plain"].body])
    for name, detail in {
        "pending": {"status": "pending"},
        "submitted": {"status": "submitted"},
        "flow-error": {"error": "payment_flow_error"},
        "text": "Payment required",
        "list": [{"loc": ["body"], "msg": "field required", "type": "missing"}],
        "null": None,
        "number": 1,
        "amount-only": {"amount": "10000000"},
    }.items():
        t.body(f"E5-detail-{name}", none, {"detail": detail})
    t.body("E5-error-and-detail", none, {"error": "payment_required", "detail": "no"})
    t.body("E5-401", none, {"detail": "Payment required"}, status=401)
    t.body("E5-422", none, {"detail": [{"loc": ["body"], "msg": "x", "type": "missing"}]}, status=422)
    t.body("E5-502", none, html, text_html, status=502)
    t.body("E5-blockfrost", none, {"status_code": 402, "error": "Project Over Limit", "message": "Usage"})
    t.set("E5-pending-with-invoice", none, "plain", "detail.status", "pending")
    t.set("E5-error-with-invoice", none, "plain", "detail.error", "payment_flow_error")
    t.set("E5-error-beside-invoice", none, "plain", "error", "payment_flow_error")
    for status in (200, 302, 401, 403, 500):
        t.status(f"E5-status-{status}", none, status)
    t.body("E5-wallet-in-detail", no, {"detail": wanted})
    t.body("E5-wallet-in-object", no, {"detail": {"error": {"code": wanted}}})
    t.body("E5-wallet-as-key", no, {"errors": [{wanted: True}]})
    t.body("E5-wallet-in-text", no, f"error: {wanted}!", {"content-type": "text/plain"}, status=400)
    t.set("E5-wallet-with-invoice", no, "plain", "detail.extra.partner", wanted)
    t.header("E5-json-as-html", shape, "plain", "Content-Type", "text/html")
    t.header("E5-json-as-text", shape, "plain", "Content-Type", "text/plain; charset=utf-8")
    t.header("E5-materios-header", "invoice_invalid/mixed_dialects", "plain", "X-402-Payment-Required", "sr25519")
    _other_shapes(t)


def _other_shapes(t: _Table) -> None:
    shape = "invoice_invalid/body"
    x402 = {"scheme": "exact", "network": "cardano:preprod", "maxAmountRequired": "2000000", "payTo": t.pay_to}
    t.body("E5-materios", shape, {"amount_due": 5}, JSON | {"X-402-Payment-Required": "sr25519"})
    t.body("E5-x402-v1-sdk", shape, {"error": "Payment Required", "invoiceId": "a", "paymentRequired": True})
    t.body("E5-x402-gateway", shape, {"error": "Payment Required", "invoiceId": "a", "protocol": "x402"})
    t.body("E5-x402-header", shape, {}, JSON | {"PAYMENT-REQUIRED": "eyJ4NDAyVmVyc2lvbiI6Mn0="})
    t.body("E5-x402-body", shape, {"x402Version": 0, "accepts": [x402]})
    t.body("E5-anchor-api", shape, {"x402": {"version": "1", "accepts": [x402]}, "invoiceId": "inv_abc123"})
    wrapped = {"amount": "10", "recipient": "0xabc", "chain": "base"}
    t.body("E5-payment-wrapped", shape, {"status": 402, "detail": "Payment required", "payment": wrapped})
    t.body("E5-detail-unwrapped", "invoice_invalid/mixed_dialects", t.bases["plain"].body["detail"])
    t.body("E5-flux-in-detail", "invoice_invalid/mixed_dialects", {"detail": t.bases["flux"].body})
    t.set("E5-x402-beside", "invoice_invalid/mixed_dialects", "plain", "accepts", [x402])
    t.set("E5-payment-beside", "invoice_invalid/mixed_dialects", "plain", "payment", wrapped)


_TERMS_BY_NAME = (
    *("percentage", "lovelaceOnTop", "currencies", "revenues", "surcharge", "commission", "changeAddress"),
    *("paytoAlso", "beneficiary", "inclusive", "additional", "paid", "state", "listFees", "perUnit", "inUnits"),
    *("listPrice", "cost", "total", "ourShare", "shares", "tax", "bps", "forwardTo", "payNow"),
    *("deadline", "chainId", "policyId", "decimalPlaces", "timeoutMs", "parentInvoiceId", "parent_invoice_id"),
)
"""Undocumented fields that would change the terms, whatever their value."""


def _fields(t: _Table) -> None:
    for key, code in [
        ("amount", "invoice_invalid/mixed_dialects"),
        ("currency", "invoice_invalid/mixed_dialects"),
        ("splits", "invoice_invalid/mixed_dialects"),
        ("splitMode", "invoice_invalid/mixed_dialects"),
        ("expiresAt", "invoice_invalid/mixed_dialects"),
        ("outputs", TERMS),
        ("split", TERMS),
        ("fee", TERMS),
        ("platform_fee", TERMS),
        ("AmountUnits", TERMS),
        ("pay_to", TERMS),
        ("recipients", TERMS),
        ("totalPrice", TERMS),
        ("revenueShare", TERMS),
        ("expires_at", TERMS),
        ("network", TERMS),
        ("assetName", TERMS),
    ]:
        t.set(f"E6-detail-{key}", code, "plain", f"detail.{key}", "1")
    for key in ("splits", "splitMode", "fee", "TXFee", "recipients", "payTo", "amountUnits", "tip", "royalties"):
        t.set(f"E6-extra-{key}", TERMS, "plain", f"detail.extra.{key}", "1")
    for key in _TERMS_BY_NAME:
        t.set(f"E6-named-{key}", TERMS, "plain", f"detail.{key}", "see our terms")
    t.set("E6-note-with-address", TERMS, "plain", "detail.greeting", "ADDR_TEST1QZ")
    t.set("E6-beside-splits", "invoice_invalid/mixed_dialects", "plain", "splits", [])
    t.set("E6-beside-fee", TERMS, "plain", "fee", "1")
    t.set("E6-babel", "invoice_invalid/body", "plain", "detail.extra.babel", True)
    t.set("E6-babel-text", "invoice_invalid/body", "plain", "detail.extra.babel", "false")
    t.set("E6-version", "invoice_invalid/body", "plain", "detail.version", "0.2")
    t.set("E6-version-number", "invoice_invalid/body", "plain", "detail.version", 0.1)
    t.set("E6-batch-zero", RANGE, "plain", "detail.extra.batchTarget", 0)
    t.set("E6-batch-float", NOT, "plain", "detail.extra.batchTarget", 99.5)
    t.set("E6-batch-true", NOT, "plain", "detail.extra.batchTarget", True)


def _ids(t: _Table) -> None:
    for name, value in {
        "empty": "",
        "space": "inv 1",
        "slash": "../../payments",
        "percent": "inv%0d%0a",
        "query": "inv?x=1",
        "non-ascii": "inv\u00e9",
        "fullwidth": "inv\uff11",
        "129": "x" * 129,
        "10k": "x" * 10_000,
        "number": 7,
        "list": ["inv-1"],
        "quote": 'inv"1',
    }.items():
        t.set(f"E7-{name}", "invoice_invalid/id", "plain", "detail.invoiceId", value)
    t.set("E7-crlf", "invoice_invalid/id", "plain", "detail.invoiceId", "inv\r\nX-Payment: 00")
    t.set("E7-tab", "invoice_invalid/id", "plain", "detail.invoiceId", "inv\t1")
    t.drop("E7-absent", "invoice_invalid/missing_field", "plain", "detail.invoiceId")
    platform = address(t.network, 6, 0x51)
    share = [{"address": platform, "amountUnits": "2000000"}]
    for name, value in {
        "receivers": share,
        "payouts": share,
        "meta": {"splits": share},
        "premium": "1000000",
        "destination": platform,
        "paid": True,
        "mode": "inclusive",
        "vat": 190_000,
    }.items():
        t.set(f"E6-detail-{name}", TERMS, "plain", f"detail.{name}", value)
        t.set(f"E6-extra-{name}", TERMS, "plain", f"detail.extra.{name}", value)
