"""What the demos do: a client's purchase from its 402 to its delivery, and the ledger beside the chain, in words.

Never: says that something happened which was not verified.
"""

import hashlib
import json
from collections.abc import Callable

import httpx

from payagent.core.money import LOVELACE, format_ada
from payagent.demo import verify
from payagent.demo.stage import Json, Stage, require

Say = Callable[[str], None]


class Purchase:
    """One request of a client until it is served: the 402, the payment, the retry."""

    def __init__(self, on: Stage, message: str) -> None:
        self.on = on
        self._body = json.dumps({"message": message}).encode()
        self.transactions_before = len(verify.transactions_of(on))
        self.refused = on.call(self._body, {"x-wallet-address": on.wallet.address})
        require(self.refused.status_code == httpx.codes.PAYMENT_REQUIRED, "the merchant did not answer 402")
        self._payment: Json = {}

    def pay(self) -> Json:
        """Give the 402 to the daemon. The idempotency key is always the same, so the payment is too."""
        body = {
            "origin": self.on.devnet.merchant_url,
            "request": {
                "method": "POST",
                "path": "/chat",
                "body_sha256": hashlib.sha256(self._body).hexdigest(),
            },
            "response": {
                "status": self.refused.status_code,
                "headers": dict(self.refused.headers),
                "body": self.refused.json(),
            },
        }
        key = hashlib.sha256(self._body).hexdigest()[:16]
        self._payment = self.on.api("POST", "/v1/payments", body, {"idempotency-key": key})
        return self._payment

    def retry(self) -> str:
        """Wait until the proof is ready, retry with it, report the delivery, check the chain. Return the reply."""
        self.on.until("the payment is confirmed", self._is_ready)
        served = self.on.call(self._body, self._payment["headers"])
        require(served.is_success, f"the retry was answered with {served.status_code}: {served.text[:300]}")
        path = f"/v1/payments/{self._payment['id']}/delivery"
        payment = self.on.api("POST", path, {"status": served.status_code})
        require(payment["delivery"] == "accepted", "the delivery was not recorded")
        verify.paid(self.on, self._payment)
        return str(served.json()["reply"])

    def _is_ready(self) -> bool:
        self._payment = self.on.api("GET", f"/v1/payments/{self._payment['id']}")
        return bool(self._payment["ready"])


def say_payment(payment: Json, say: Say) -> None:
    say(f"   transaction  {payment['tx_hash']}")
    for output in payment["outputs"]:
        amount = amount_text(output["asset"], output["units"])
        say(f"   {output['role']:<11}  {amount:>12} to {output['address'][:28]}...")
    say(f"   fee          {amount_text(LOVELACE, payment['fee']):>12}")


def was_submitted(on: Stage) -> bool:
    return bool(on.control("state")["faults"]["triggered"].get("submit:hang"))


def show_books(on: Stage, say: Say) -> None:
    """Show the ledger's balances, and check that they add up and agree with the chain."""
    on.until("nothing is in flight", lambda: _held(on) == 0)
    balance = on.api("GET", "/v1/ledger/balance")
    for row in balance["balances"]:
        say(f"   {amount_text(row['asset'], row['units']):>18}  {_account(on, row['account'])}")
    chain = verify.books(on, balance["balances"])
    amounts = ", ".join(amount_text(asset, units) for asset, units in sorted(chain.items(), reverse=True))
    say(
        "   The postings of each asset sum to zero.\n"
        f"   The chain shows {amounts} at the wallet's address{'es' if len(on.addresses) > 1 else ''}.\n"
        "   The ledger agrees, to the unit."
    )


def available(on: Stage, asset: str) -> int:
    """The units of an asset that the wallet can spend."""
    rows = on.api("GET", "/v1/wallet")["assets"]
    return sum(int(row["available"]) for row in rows if row["asset"] == asset)


def _held(on: Stage) -> int:
    return sum(int(row["held"]) for row in on.api("GET", "/v1/wallet")["assets"])


def _account(on: Stage, account: str) -> str:
    words = {
        **{name: f"in {place}, available" for name, place in _places(on, "wallet")},
        **{name: f"in {place}, held for payments" for name, place in _places(on, "held")},
        "fees": "paid as fees",
        "external": "received from outside",
        f"merchant:{on.devnet.merchant_url}": "used at the merchant",
        f"prepaid:{on.devnet.merchant_url}": "prepaid at the merchant",
        f"channel:{on.devnet.merchant_url}": "locked in the channel, not promised",
    }
    return words.get(account, account)


def _places(on: Stage, name: str) -> list[tuple[str, str]]:
    """A name of the ledger for each account of the wallet, and what people call the account."""
    if len(on.addresses) == 1:
        return [(name, "the wallet")]
    return [(f"{name}/{number}" if number else name, f"account {number}") for number in range(len(on.addresses))]


def amount_text(asset: str, units: str | int) -> str:
    return format_ada(int(units)) if asset == LOVELACE else f"{units} demo"
