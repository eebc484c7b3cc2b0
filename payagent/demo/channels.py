"""The scenes of the demo of channels: 100 calls of 0.001 ADA through the proxy, by two transactions.

Start at `allow`. `payagent.demo` plays them in the order of this file.

Never: says that something happened which was not verified.
"""

import time
from typing import Any

from payagent.core.channel import PHASES_IN_WORDS
from payagent.core.cost_headers import COST_HEADER, PAYMENT_HEADER
from payagent.core.money import format_ada
from payagent.demo import verify
from payagent.demo.purchase import Say, say_payment, show_books
from payagent.demo.stage import Stage, require

CALLS = 100
PRICE_LOVELACE = 1_000
PROMISED_LOVELACE = CALLS * PRICE_LOVELACE
FAUCETS = 1
"""The wallet's transactions before the channel: the faucet's."""


def allow(on: Stage, say: Say) -> None:
    """Let the merchant sell by channel, allow it in the config, and restart the daemon."""
    on.set_merchant(dialect="x402-channel", price=str(PRICE_LOVELACE))
    text = (
        f'[channels]\nenabled = true\n[merchants.t.channel]\nprovider_keys = ["{_merchant(on)["provider_key"]}"]\n'
    )
    with on.wallet.config.open("a") as config:
        config.write(text)
    on.daemon.stop()
    on.start_daemon()
    lines = "\n".join(f"      {line}" for line in text.splitlines())
    say(f"   Channels are off by default. The operator adds to the config, and restarts the daemon:\n{lines}")


def open_one(on: Stage, say: Say) -> None:
    refused = on.through_proxy(b"{}", "/channel/first")
    code = refused.json()["code"]
    require(code == "channel_missing", f"the first call was answered with {code}, not channel_missing")
    say("   A first call shows payagent the merchant's offer. It is refused: channel_missing. Nothing was paid.")
    on.api("POST", "/v1/channels", {"merchant": "t"})
    on.until("the channel is open", lambda: _channel(on)["state"] == "open")
    _say_step(on, say)
    verify.transactions(on, before=FAUCETS, count=1)
    room = format_ada(int(_channel(on)["capacity"]))
    say(f"   The channel is open. Calls can use {room} of it; the reserve returns with the rest.")


def call(on: Stage, say: Say) -> None:
    times_s = []
    for number in range(CALLS):
        started_s = time.perf_counter()
        answer = on.through_proxy(b"{}", f"/channel/{number}")
        times_s.append(time.perf_counter() - started_s)
        require(answer.is_success, f"call {number} was answered with {answer.status_code}: {answer.text[:300]}")
        cost = answer.headers.get(COST_HEADER)
        require(cost == f"{PRICE_LOVELACE} lovelace", f"call {number} cost {cost}")
    say(f"   The last call is payment {answer.headers[PAYMENT_HEADER]}: no transaction and no fee.")
    channel = _channel(on)
    counts = [int(count) for count in (channel["signed"], channel["count"], _charged(on, channel["id"]))]
    require(counts == [PROMISED_LOVELACE] * 3, f"signed, counted and charged are {counts}")
    verify.transactions(on, before=FAUCETS, count=1)
    say(
        f"   {CALLS} calls took {sum(times_s):.2f} s: {sorted(times_s)[CALLS // 2] * 1000:.1f} ms for the median "
        f"call, the merchant's answer included.\n   Each cost {format_ada(PRICE_LOVELACE)}. "
        f"payagent signed {format_ada(PROMISED_LOVELACE)} in all. The merchant counts the same."
    )


def close(on: Stage, say: Say) -> None:
    on.api("POST", f"/v1/channels/{_channel(on)['id']}/close", {})
    on.until("the chain shows the channel closed", lambda: _channel(on)["returns_at"] is not None)
    _say_step(on, say)
    channel = _channel(on)
    require(channel["state"] == "closing", f"the channel is {channel['state']}")
    verify.transactions(on, before=FAUCETS, count=2)
    say(
        "   All that was locked is still at the validator's address.\n"
        f"   The channel is closing: {PHASES_IN_WORDS[channel['state']]}.\n"
        f"   That is at {channel['returns_at']}, and takes one more transaction. The merchant can still take "
        f"{format_ada(int(channel['most_lost']))}.\n"
        f"   {CALLS} calls, two transactions: one to open, one to close."
    )


def books(on: Stage, say: Say) -> None:
    show_books(on, say)
    for check in ("verify", "reconcile"):
        require(on.api("GET", f"/v1/ledger/{check}")["clean"], f"`ledger {check}` has findings")
    say("   `ledger verify` and `ledger reconcile` find nothing.")


def _channel(on: Stage) -> Any:
    return on.api("GET", "/v1/channels")["channels"][0]


def _merchant(on: Stage) -> Any:
    """The merchant's own view of its channels."""
    return on.http.get(f"{on.devnet.merchant_url}/merchant/state").json()["channel"]


def _charged(on: Stage, channel_id: str) -> int:
    return int(_merchant(on)["channels"][channel_id]["count"])


def _say_step(on: Stage, say: Say) -> None:
    """Show the channel's newest transaction. The chain must show its fee, and at the script all that was locked."""
    steps = _channel(on)["steps"]
    opening, newest = (on.api("GET", f"/v1/payments/{steps[at]['payment']}") for at in (0, -1))
    outputs = [output | {"role": "channel"} for output in opening["outputs"]]
    verify.paid(on, newest | {"outputs": outputs})
    say_payment(newest | {"outputs": outputs}, say)
