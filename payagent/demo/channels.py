"""The scenes of the demo of channels: 100 calls of 0.001 ADA through the proxy, by two transactions.

Start at `allow`. `payagent.demo` plays them in the order of this file.

Never: says that something happened which was not verified.
"""

import time
from typing import Any

from payagent.core.channel import PHASES_IN_WORDS
from payagent.core.cost_headers import COST_HEADER
from payagent.core.money import format_ada
from payagent.demo import verify
from payagent.demo.purchase import Say, say_payment, show_books
from payagent.demo.stage import Stage, require

CALLS = 100
PRICE_LOVELACE = 1_000


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
    code = on.through_proxy(b"{}", "/channel/first").json()["code"]
    require(code == "channel_missing", f"the first call was answered with {code}, not channel_missing")
    say("   A first call shows payagent the merchant's offer. It is refused: channel_missing. Nothing was paid.")
    on.api("POST", "/v1/channels", {"merchant": "t"})
    on.until("the channel is open", lambda: _channel(on)["state"] == "open")
    _say_step(on, say)
    say(
        f"   The channel is open. Calls can use {format_ada(int(_channel(on)['capacity']))} of it.\n"
        "   The reserve and all that is not used return after the channel is closed."
    )


def call(on: Stage, say: Say) -> None:
    started_s = time.perf_counter()
    for number in range(CALLS):
        answer = on.through_proxy(b"{}", f"/channel/{number}")
        require(
            answer.headers.get(COST_HEADER) == f"{PRICE_LOVELACE} lovelace",
            f"call {number} was answered with {answer.status_code}: {answer.text[:300]}",
        )
    took_s = time.perf_counter() - started_s
    channel = _channel(on)
    counts = {channel["signed"], channel["count"], _merchant(on)["channels"][channel["id"]]["count"]}
    require(counts == {str(CALLS * PRICE_LOVELACE)}, f"signed, counted and charged are {counts}")
    say(
        f"   {CALLS} calls took {took_s:.2f} s: {took_s / CALLS * 1000:.1f} ms a call, the merchant's answer "
        f"included.\n   Each cost {format_ada(PRICE_LOVELACE)}, without a transaction or a fee.\n"
        f"   payagent signed {format_ada(int(channel['signed']))} in all. The merchant counts the same."
    )


def close(on: Stage, say: Say) -> None:
    on.api("POST", f"/v1/channels/{_channel(on)['id']}/close", {})
    on.until("the chain shows the channel closed", lambda: _channel(on)["returns_at"] is not None)
    _say_step(on, say)
    channel = _channel(on)
    verify.transactions(on, before=1, count=2)  # the faucet's came before
    say(
        f"   The channel is {channel['state']}: {PHASES_IN_WORDS[channel['state']]}.\n"
        f"   That is at {channel['returns_at']}, and takes one more transaction. Until then all that was locked\n"
        "   stays at the validator's address. "
        f"The merchant can take {format_ada(int(channel['most_lost']))} of it.\n"
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


def _say_step(on: Stage, say: Say) -> None:
    """Show the channel's newest transaction. The chain must show its fee, and that all stays locked."""
    steps = _channel(on)["steps"]
    opening, newest = (on.api("GET", f"/v1/payments/{steps[at]['payment']}") for at in (0, -1))
    outputs = [output | {"role": "channel"} for output in opening["outputs"]]
    verify.paid(on, newest | {"outputs": outputs})
    say_payment(newest | {"outputs": outputs}, say)
