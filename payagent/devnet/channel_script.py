"""The rules by which a channel's money moves: those of the Subbit validator, in Python.

Start at `run_script`. The devnet cannot run Plutus scripts. Its script for channels is a placeholder of the real
one's length: the ledger requires its bytes and its hash as usual, and then applies these rules.

Source: kompact-io/subbit-xyz, as the x402 draft `batch-settlement` for Cardano has it. Units were measured. Pure.

Never: imports the wallet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

from payagent.devnet import cbor
from payagent.devnet.address import is_signed, read_address
from payagent.devnet.cbor import Reader
from payagent.devnet.ledger_types import OutRef, TxOut
from payagent.devnet.plutus_data import Constr, read_plutus_data, write_plutus_data

SCRIPT = cbor.byte_string(b"This stands for the Subbit validator on the devnet. ".ljust(3_043, b"."))
"""The placeholder: CBOR of a byte string, as compiled scripts are."""

SCRIPT_CBOR = b"\x82\x03" + cbor.byte_string(SCRIPT)
"""`[language, script]`, the form of a reference script."""

SCRIPT_HASH = blake2b(b"\x03" + SCRIPT, digest_size=28).digest()
SCRIPT_ADDRESS = b"\x70" + SCRIPT_HASH
OPENED, CLOSED, SETTLED = range(3)
_NUMBERS = {OPENED: 1, CLOSED: 2, SETTLED: 0}
"""How many numbers a stage has: what was taken, and when the channel elapses."""

Units = tuple[int, int]
"""Memory and steps."""

_UNITS: dict[str, Units] = {
    "add": (174_612, 65_400_000),
    "close": (189_662, 69_500_000),
    "end": (114_753, 39_400_000),
    "elapse": (121_901, 41_900_000),
    "mutual": (61_168, 21_600_000),
    "sub": (205_000, 135_000_000),
    "settle": (195_000, 130_000_000),
    "defer": (45_000, 15_000_000),
}
_PER_INPUT: Units = (6_120, 3_300_000)
_PER_OUTPUT: Units = (5_500, 2_900_000)
_STEPS = {
    (0, 0): ("add", OPENED, OPENED),
    (0, 1): ("sub", OPENED, OPENED),
    (0, 2): ("close", OPENED, CLOSED),
    (0, 3): ("settle", CLOSED, SETTLED),
    (1, 0): ("end", SETTLED, None),
    (1, 1): ("elapse", CLOSED, None),
}
"""A step, and the stages before and after it, by its kind (0 continues the channel, 1 ends it) and constructor."""


class ScriptFailed(Exception):  # noqa: N818  a verdict, not an error of ours
    """The script refuses the transaction."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ScriptFailed(otherwise)


# --- datums and vouchers -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChannelDatum:
    """The datum of a channel. `currency` is `lovelace`, or policy and name in hex. Times are in milliseconds."""

    own_hash: bytes
    tag: bytes
    currency: str
    iou_key: bytes
    consumer: bytes
    provider: bytes
    close_period_ms: int
    stage: int
    subbed: int = 0
    elapse_at_ms: int = 0

    def at(self, stage: int, subbed: int = 0, elapse_at_ms: int = 0) -> "ChannelDatum":
        """The same channel at a stage."""
        return replace(self, stage=stage, subbed=subbed, elapse_at_ms=elapse_at_ms)

    def amount(self, out: TxOut) -> int:
        """The units of the channel's currency in an output."""
        return out.lovelace if self.currency == "lovelace" else out.assets.get(self.currency, 0)

    def encode(self) -> bytes:
        """The datum in CBOR."""
        asset = bytes.fromhex("" if self.currency == "lovelace" else self.currency)
        currency = Constr(1, [asset[:28], asset[28:]]) if asset else Constr(0, [])
        constants = [self.tag, currency, self.iou_key, self.consumer, self.provider, self.close_period_ms]
        numbers: list[object] = [self.subbed, self.elapse_at_ms]
        stage = Constr(self.stage, numbers[: _NUMBERS[self.stage]])
        return write_plutus_data([self.own_hash, constants, stage])


@lru_cache(maxsize=256)
def read_datum(inline_datum: str | None) -> ChannelDatum:
    """A channel's datum, from hex. Raises `ScriptFailed` for anything else."""
    match None if inline_datum is None else read_plutus_data(Reader(bytes.fromhex(inline_datum))):
        case [
            bytes(own_hash),
            [
                bytes(tag),
                Constr(0 | 1, [] | [bytes(), bytes()]) as currency,
                bytes(key),
                bytes(payer),
                bytes(taker),
                int(period),
            ],
            Constr(stage, fields),
        ]:
            asset = "".join(part.hex() for part in currency.fields if isinstance(part, bytes))
            numbers = [number for number in fields if isinstance(number, int)]
            if stage in _NUMBERS and len(numbers) == len(fields) == _NUMBERS[stage]:
                return ChannelDatum(own_hash, tag, asset or "lovelace", key, payer, taker, period, stage, *numbers)
    raise ScriptFailed("the datum is not a channel's")


def iou_message(tag: bytes, amount: int) -> bytes:
    """The bytes that an IOU signs."""
    return write_plutus_data([tag, amount])


def is_iou(key: bytes, tag: bytes, amount: int, signature: bytes) -> bool:
    """Whether the signature is this key's IOU for an amount."""
    return is_signed(key, signature, iou_message(tag, amount))


def channel_tag(ref: OutRef) -> bytes:
    """The tag that an opening which spends this output may take."""
    item = b"\x82" + cbor.byte_string(bytes.fromhex(ref[0])) + cbor.head(cbor.UINT, ref[1])
    return blake2b(item, digest_size=32).digest()


# --- the script --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScriptView:
    """A transaction as scripts see it: inputs in the ledger's order, and the validity interval in milliseconds."""

    inputs: Sequence[tuple[OutRef, TxOut]]
    outputs: Sequence[TxOut]
    start_ms: int | None
    end_ms: int | None
    signers: Sequence[bytes]


def run_script(view: ScriptView, own: int, redeemer: object) -> Units:
    """Run the script for the input at a place in the order. Returns the units that it takes.

    Raises `ScriptFailed` if the script refuses.
    """
    ref, out = view.inputs[own]
    datum = read_datum(out.inline_datum)
    match redeemer:
        case Constr(0, []):
            first = next((at for at, held in view.inputs if _script_of(held) == datum.own_hash), ref)
            _require(first != ref, "defer: no channel comes first")
            steps = ["defer"]
        case Constr(1, [list(given)]):
            steps = _run_main(view, datum.own_hash, given)
        case Constr(2, []):
            _require({datum.consumer, datum.provider} <= set(view.signers), "mutual: a signer is missing")
            channels = [held for _, held in view.inputs if _script_of(held) == _script_of(out)]
            _require(len(channels) == 1, "mutual: other channels are spent")
            steps = ["mutual"]
        case _:
            raise ScriptFailed("the redeemer is not one of a channel's")
    before = next((place for place, kept in enumerate(view.outputs) if _script_of(kept) is not None), 0)
    memory, cpu = (sum(_UNITS[step][part] for step in steps) for part in (0, 1))
    return (
        memory + own * _PER_INPUT[0] + before * _PER_OUTPUT[0],
        cpu + own * _PER_INPUT[1] + before * _PER_OUTPUT[1],
    )


def _script_of(out: TxOut) -> bytes | None:
    return read_address(out.address).script_hash


def _run_main(view: ScriptView, own_hash: bytes, given: list[object]) -> list[str]:
    """Check one step for each channel that is spent, in order. Returns the steps' names."""
    spent = (out for _, out in view.inputs if _script_of(out) == own_hash)
    kept = (out for out in view.outputs if _script_of(out) == own_hash)
    names = []
    for step in given:
        match step:
            case Constr(kind, [Constr(number, arguments)]) if (kind, number) in _STEPS:
                names.append(_run_step(view, (kind, number), arguments, _next(spent, own_hash), kept))
            case _:
                raise ScriptFailed("the redeemer has an unknown step")
    _require(next(spent, None) is None, "a channel is spent without a step")
    return names


def _next(outs: Iterator[TxOut], own_hash: bytes) -> tuple[TxOut, ChannelDatum]:
    out = next(outs, None)
    if out is None:
        raise ScriptFailed("a channel is missing")
    datum = read_datum(out.inline_datum)
    _require(datum.own_hash == own_hash, "the datum names another script")
    return out, datum


def _run_step(
    view: ScriptView,
    step: tuple[int, int],
    arguments: list[object],
    spent: tuple[TxOut, ChannelDatum],
    kept: Iterator[TxOut],
) -> str:
    """Check one step. Returns its name."""
    (name, before, then), (out, old) = _STEPS[step], spent
    match arguments:
        case [] if name not in ("sub", "settle"):
            signer, owed = old.consumer, 0
        case [int(owed), bytes(signature)] if is_iou(old.iou_key, old.tag, owed, signature):
            signer = old.provider
        case _:
            raise ScriptFailed(f"{name}: the IOU or the arguments are not valid")
    _require(signer in view.signers, f"{name}: not signed by {signer.hex()}")
    _require(old.stage == before, f"{name}: the channel is at another stage")
    if then is None:
        is_early = name == "elapse" and (view.start_ms is None or view.start_ms < old.elapse_at_ms)
        _require(not is_early, "elapse: too early")
        return name
    after, new = _next(kept, old.own_hash)
    is_alike = after.address == out.address and after.reference_script is None
    _require(is_alike, f"{name}: another address or a script")
    _require(new.at(then) == old.at(then) and new.stage == then, f"{name}: the constants or the stage change")
    _require(after.assets.keys() <= {old.currency}, f"{name}: other assets are added")
    gone = old.amount(out) - old.amount(after)
    is_in_time = view.end_ms is not None and view.end_ms <= new.elapse_at_ms - old.close_period_ms
    holds, otherwise = {
        "add": (new == old and gone < 0, "nothing is added, or what was taken changes"),
        "close": (
            new.subbed == old.subbed and gone <= 0 and is_in_time,
            "money leaves, what was taken changes, or it elapses too early",
        ),
        "sub": (new.subbed - old.subbed == gone <= owed - old.subbed, "not what leaves, or above the IOU"),
        "settle": (gone <= owed - old.subbed, "above the IOU"),
    }[name]
    _require(holds, f"{name}: {otherwise}")
    return name
