"""demo: shows payagent at work in plain words, and checks every step against the chain.

Start at `run_demo`, which plays the scenes. `channels` has those of channels, and `fleet` plays those of several
daemons. `stage` starts devnet and daemon; `verify` has the checks.

Never: says that something happened which was not verified.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from payagent.core.cost_headers import PAYMENT_HEADER
from payagent.core.money import LOVELACE, format_ada
from payagent.demo import channels, verify
from payagent.demo.purchase import Purchase, Say, available, say_payment, show_books, was_submitted
from payagent.demo.stage import TOKEN, DemoFailed, Json, Stage, Waiting, require, stage
from payagent.devnet.merchant import FLUX, T_BACKEND

__all__ = ["DemoFailed", "run_demo"]

FUNDS_LOVELACE = 500_000_000
TOKENS = 1_000
BATCH = 3


def run_demo(
    say: Say,
    waiting: Waiting,
    environ: Mapping[str, str],
    provider: str | None = None,
    *,
    in_hsm: bool = False,
    by_channel: bool = False,
) -> None:
    """Play every scene. Raises `DemoFailed` at the first step with a wrong result.

    `provider`: the kind of chain provider; None for the usual one. `in_hsm`: the wallet's key is in SoftHSM.
    `by_channel`: the scenes are those of channels.
    """
    with stage(waiting, environ, provider, in_hsm=in_hsm) as on:
        if in_hsm:
            say("The wallet's key is made in a token of SoftHSM. No file of the wallet has it.\n")
        for number, (title, scene) in enumerate(_CHANNEL_SCENES if by_channel else _SCENES, 1):
            say(f"{number}. {title}")
            scene(on, say)
            say("")
    say("Every step was verified. Nothing is left behind.")


def _open(on: Stage, say: Say) -> None:
    say(
        f"   chain     {on.devnet.chain_url}\n   merchant  {on.devnet.merchant_url}\n"
        f"   wallet    {on.wallet.address}"
    )
    on.control("faucet", {"address": on.wallet.address, "lovelace": str(FUNDS_LOVELACE)})
    on.start_daemon()
    say(f"   daemon    {on.daemon.url}, its own process, is ready")
    on.until("the faucet's money arrives", lambda: available(on, LOVELACE) == FUNDS_LOVELACE)
    say(f"   The faucet sent {format_ada(FUNDS_LOVELACE)}. The daemon saw it on the chain and recorded it.")


def _pay_with_shares(on: Stage, say: Say) -> None:
    call = Purchase(on, "What is a proof of stake?")
    say(
        f"   The client calls /chat. The merchant answers {call.refused.status_code}: pay first.\n"
        "   The client passes the 402 to payagent, which answers before it submits anything:"
    )
    payment = call.pay()
    say_payment(payment, say)
    served = call.retry()
    say(f"   In a block and confirmed. The client retries with the proof and is served:\n   {served}")
    again = call.pay()
    require(again["id"] == payment["id"], "the same 402 made a second payment")
    verify.transactions(on, before=call.transactions_before, count=1)
    say("   The same 402 again is the same payment; the chain shows one transaction.")


def _pay_with_tokens(on: Stage, say: Say) -> None:
    on.control("faucet", {"address": on.wallet.address, "assets": {TOKEN: str(TOKENS)}})
    on.until("the tokens arrive", lambda: available(on, TOKEN) == TOKENS)
    shares = [{"role": "platform", "units": "20"}]
    on.set_merchant(asset=TOKEN, price="250", splits=shares)
    call = Purchase(on, "And what is a native token?")
    payment = call.pay()
    say_payment(payment, say)
    call.retry()
    left = available(on, TOKEN)
    require(left == TOKENS - 270, f"{left} tokens are left, not {TOKENS - 270}")
    say(f"   Served. {left} of {TOKENS} tokens are left; the min-ADA counted against the limits.")


def _pay_flux(on: Stage, say: Say) -> None:
    on.set_merchant(
        asset=LOVELACE, price="3000000", splits=[{"role": "creator", "units": "1500000"}], dialect=FLUX
    )
    call = Purchase(on, "The same in another dialect, please.")
    payment = call.pay()
    require(payment["dialect"] == FLUX, f"the 402 was read as {payment['dialect']}")
    say_payment(payment, say)
    call.retry()
    say("   Served.")


def _survive_kill(on: Stage, say: Say) -> None:
    on.set_merchant(dialect=T_BACKEND, price="5000000", splits=[])
    on.control("faults", {"on": "submit", "kind": "hang", "accept": "now", "count": 1})
    call = Purchase(on, "Are you still there?")
    payment = call.pay()
    say(f"   Paying with transaction {payment['tx_hash']}.")
    on.until("the submission arrives", lambda: was_submitted(on))
    process = on.daemon.kill()
    say(f"   The network accepted it but does not answer. Now: kill -9 of process {process}.")
    on.control("faults", {"clear": True})
    on.start_daemon()
    restored = on.api("GET", f"/v1/payments/{payment['id']}")
    require(restored["tx_hash"] == payment["tx_hash"], "the restarted daemon has another transaction")
    say(f"   After a restart it finds payment {restored['id']} and reads the chain.")
    again = call.pay()
    require(again["id"] == payment["id"], "after the restart the same 402 made a second payment")
    call.retry()
    verify.transactions(on, before=call.transactions_before, count=1)
    say(
        "   The same 402 again: the same payment, the same proof, and the request is served.\n"
        "   The chain shows one transaction."
    )


def _use_up_a_batch(on: Stage, say: Say) -> None:
    on.set_merchant(price="6000000", batch=BATCH)
    before = len(verify.transactions_of(on))
    for number in range(BATCH):
        answer = on.through_proxy(json.dumps({"message": f"Question {number} of a batch"}).encode())
        require(answer.is_success, f"call {number} was answered with {answer.status_code}: {answer.text[:300]}")
        paid = answer.headers.get(PAYMENT_HEADER)
        require((paid is not None) == (number == 0), f"call {number} of the batch has the payment {paid}")
        if paid is not None:
            say(f"   One 402 sells {BATCH} calls. The proxy pays it, and the client sees only the answers.")
    _require_prepaid(on, bought=BATCH, used=BATCH)
    verify.transactions(on, before=before, count=1)
    say(f"   {BATCH} calls, one transaction. Bought {BATCH}, used {BATCH}, left 0; the merchant agrees.")


def _top_up(on: Stage, say: Say) -> None:
    before = len(verify.transactions_of(on))
    order = on.api("POST", "/v1/prepaid/topups", {"merchant": "t", "units": "12000000"})
    on.until("the top-up is done", lambda: _topup(on, order)["state"] != "open")
    done = _topup(on, order)
    require(done["state"] == "done", f"the top-up ended as {done}")
    _require_prepaid(on, bought=3 * BATCH, used=BATCH)
    verify.transactions(on, before=before, count=2)
    say(f"   A top-up of 12 ADA bought two batches of 6 ADA. {2 * BATCH} calls are left; the merchant agrees.")
    served = on.through_proxy(b'{"message": "And one call of the top-up"}')
    require(served.is_success and PAYMENT_HEADER not in served.headers, "the top-up was not used")
    _require_prepaid(on, bought=3 * BATCH, used=BATCH + 1)
    say("   A request is served from the balance, without a payment.")


def _topup(on: Stage, order: Json) -> Any:
    return on.api("GET", f"/v1/prepaid/topups/{order['id']}")


def _require_prepaid(on: Stage, *, bought: int, used: int) -> None:
    """Require that our counts and the merchant's agree."""
    expected = (str(bought), str(used), str(bought - used), "0")

    def is_so() -> bool:
        pools = on.api("GET", "/v1/prepaid")["prepaid"]
        return [(pool["bought"], pool["used"], pool["left"], pool["difference"]) for pool in pools] == [expected]

    on.until(f"bought {bought}, used {used}, and the merchant says the same", is_so)


def _call_a_tool(on: Stage, say: Say) -> None:
    if find_spec("mcp") is None:
        say("   Skipped: it needs the extra mcp. Run pipx install --force '.[mcp]' in the clone.")
        return
    from payagent.demo.agent_tool import call_tool

    on.set_merchant(price="2000000")
    before = len(verify.transactions_of(on))
    say("   An AI agent calls the tool `report` of the merchant's MCP server, through payagent mcp proxy.")
    with on.waiting() as progress:
        progress("   waiting: the tool's answer")
        text, payment_id = call_tool(on, "report", {"topic": "Hydra"})
    payment = on.api("GET", f"/v1/payments/{payment_id}")
    say_payment(payment, say)
    verify.paid(on, payment)
    verify.transactions(on, before=before, count=1)
    say(f"   The agent holds no key, and reads only the answer:\n   {text}")


_SCENES: tuple[tuple[str, Callable[[Stage, Say], None]], ...] = (
    ("A small Cardano network, a merchant, and a wallet", _open),
    ("A paid request, with revenue shares", _pay_with_shares),
    ("An invoice in a native token", _pay_with_tokens),
    ("Another merchant's dialect", _pay_flux),
    ("The daemon is killed between submission and answer", _survive_kill),
    ("A prepaid batch, through the proxy", _use_up_a_batch),
    ("A top-up", _top_up),
    ("An agent pays for a tool", _call_a_tool),
    ("The ledger", show_books),
)

_CHANNEL_SCENES: tuple[tuple[str, Callable[[Stage, Say], None]], ...] = (
    ("A small Cardano network, a merchant, and a wallet", _open),
    ("The merchant sells by channel, and the operator allows it", channels.allow),
    ("A channel is opened", channels.open_one),
    (f"{channels.CALLS} calls through the proxy", channels.call),
    ("The channel is closed", channels.close),
    ("The ledger", channels.books),
)
