"""A call that a channel pays, beside one by `exact` and one from a prepaid batch, all through the proxy."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.clients import Answer, Call, Json, at_once, in_turn
from benchmarks.measure import Spread, cpu_s
from benchmarks.paying import BLOCKS, require, settled
from benchmarks.results import Bound, Cell, Options, Part, Ratio, Table
from benchmarks.stage import UNBOUND, Stage, stage, until
from payagent.devnet.channel_shop import ChannelShop
from payagent.devnet.facilitator import IN_MEMPOOL

UTXO_LOVELACE = 100_000_000
CHANNEL, EXACT, BATCH, UNPAID = "a channel", "exact", "a prepaid batch", "the unpaid call, without payagent"
PRICES = {CHANNEL: 100, EXACT: 2_000_000, BATCH: 2_000_000}
"""Lovelace. A transaction cannot pay less than about 1 ADA."""

CALLS_OF_BATCH = 100_000
CLIENTS = 8
FOLLOW_S = 3.0
"""A payment by `exact` is watched after its answer. That processor time counts too."""

HOW = f"""\
The same daemon pays calls of the devnet's merchant through the proxy: by vouchers of a channel (0.0001 ADA each),
by an x402 payment each, which the merchant submits and serves before it is in a block (2 ADA), and from a prepaid
batch of {CALLS_OF_BATCH:,} calls. Calls come one after the other, of each kind in turn. The channel is open and
the batch bought before. Processor time is the daemon's and its signer's, from the first call of a turn until
{FOLLOW_S:.0f} s after its last answer, less what they need at rest. A call by `exact` or by a channel asks the
merchant twice. Then {CLIENTS} clients share the one channel, on which one voucher at most has no answer yet.
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """Milliseconds of each call, and of processor time a call."""

    taken_ms: list[float]
    cpu_ms: float


def measure(options: Options) -> Part:
    turns, count, each = options.pick(1, 3), options.pick(30, 60), options.pick(25, 100)
    nothing: Any = None  # its key follows from its name alone
    provider = ChannelShop(nothing, nothing, "0").provider.hex()
    environ = UNBOUND | {
        "PAYAGENT_CHANNELS__ENABLED": "true",
        "PAYAGENT_MERCHANTS__T__CHANNEL__PROVIDER_KEYS": f'["{provider}"]',
        "PAYAGENT_MERCHANTS__T__CHANNEL__OPEN": "auto",
    }
    made: dict[str, list[Turn]] = {name: [] for name in (CHANNEL, EXACT, BATCH)}
    with stage([UTXO_LOVELACE] * 2 * count, devnet_options=BLOCKS, environ=environ) as up:
        for name in made:
            _begin(up, name)
        rest = _rest_ms_a_s(up)
        for number in range(turns):
            for name, of_kind in made.items():
                of_kind.append(_turn(up, name, number, count, rest))
        _set(up, CHANNEL)
        direct = [Call.of("GET", f"{up.merchant}/channel/{number}", {}) for number in range(count)]
        unpaid = Spread.of([answer.ms for answer in asyncio.run(in_turn(up.merchant, direct))])
        shared = [_call(up, CHANNEL, f"shared-{number}") for number in range(CLIENTS * each)]
        answers, took_s = asyncio.run(at_once(up.api, shared, CLIENTS))
        require(answers, 200)
        channels = up.get("/v1/channels")["channels"]
    return _as_part(made, unpaid, len(answers) / took_s, len(channels))


def _as_part(made: dict[str, list[Turn]], unpaid: Spread, rate: float, channels: int) -> Part:
    spreads = {name: Spread.of([ms for turn in turns for ms in turn.taken_ms]) for name, turns in made.items()}
    cpu = {name: sum(turn.cpu_ms for turn in turns) / len(turns) for name, turns in made.items()}
    part = Part("channels", "A call by channel", HOW, left_out="TLS to the merchant; the chain of a real network.")
    for name in (EXACT, BATCH):
        times = spreads[name].median / spreads[CHANNEL].median
        part.ratios.append(Ratio("one call by channel, median", name, times))
        part.ratios.append(Ratio("processor time of a call by channel", name, cpu[name] / cpu[CHANNEL]))
    over = round(cpu[CHANNEL] / cpu[EXACT], 2)
    part.bounds.append(Bound(f"processor time of a call by channel, beside {EXACT}", over, 1, "times"))
    part.bounds.append(Bound("channels that were opened for all calls", channels, 1, ""))
    rows: list[tuple[Cell, ...]] = [
        (name, one.median, one.p10, one.p90, one.p99, cpu[name]) for name, one in spreads.items()
    ]
    rows.append((UNPAID, unpaid.median, unpaid.p10, unpaid.p90, unpaid.p99, None))
    columns = ("by", "ms median", "p10", "p90", "p99", "ms of processor time")
    part.tables.append(Table("One call after the other", columns, rows))
    rate_columns = ("", "a second")
    part.tables.append(Table("One channel", rate_columns, [(f"vouchers, {CLIENTS} clients", round(rate))]))
    return part


def _set(up: Stage, name: str) -> None:
    """What the merchant asks for, and how."""
    settings: Json = {"price": str(PRICES[name]), "batch": CALLS_OF_BATCH if name == BATCH else 1, "splits": []}
    settings["x402"] = {"confirmations": IN_MEMPOOL}
    if name == CHANNEL:
        settings["dialect"] = "x402-channel"
    up.http.post(f"{up.merchant}/merchant/settings", json=settings).raise_for_status()


def _call(up: Stage, name: str, word: str) -> Call:
    token, proxy = {"X-Payagent-Token": up.token}, f"{up.api}/proxy/t"
    if name == BATCH:
        return Call.of("POST", f"{proxy}/chat", token, {"message": word})
    return Call.of("GET", f"{proxy}/{'channel' if name == CHANNEL else 'x402'}/{word}", token)


def _begin(up: Stage, name: str) -> None:
    """Open the channel, buy the batch, and make a few calls more."""
    _set(up, name)
    last: list[Answer] = []

    def is_served() -> bool:
        last[:] = asyncio.run(in_turn(up.api, [_call(up, name, "first")]))
        return last[0].status == 200

    until(is_served, f"a first call by {name} is served")
    require(asyncio.run(in_turn(up.api, [_call(up, name, f"warm-{number}") for number in range(5)])), 200)
    settled(up)


def _rest_ms_a_s(up: Stage) -> float:
    """Milliseconds of processor time in a second without calls."""
    began, began_s = cpu_s(up.pid), time.monotonic()
    time.sleep(2 * FOLLOW_S)
    return (cpu_s(up.pid) - began) * 1000 / (time.monotonic() - began_s)


def _turn(up: Stage, name: str, number: int, count: int, rest_ms_a_s: float) -> Turn:
    _set(up, name)
    settled(up)
    calls = [_call(up, name, f"turn-{number}-{index}") for index in range(count)]
    began, began_s = cpu_s(up.pid), time.monotonic()
    answers = asyncio.run(in_turn(up.api, calls))
    require(answers, 200)
    time.sleep(FOLLOW_S)
    used_ms = (cpu_s(up.pid) - began) * 1000 - (time.monotonic() - began_s) * rest_ms_a_s
    return Turn([answer.ms for answer in answers], used_ms / count)
