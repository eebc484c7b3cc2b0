"""What a webhook gets: body and signature of Standard Webhooks, as its library and our page verify them."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from kit.webhook import KEY, SECRET, Call, Receiver
from standardwebhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from payagent.agent.base.ports import SystemClock
from payagent.core.notifications import Missed, Notification
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT
from payagent.outbound.webhook import Webhook, signature, signing_key

PAGE = Path(__file__).parents[2] / "docs/how-to/receive-notifications.md"
NEWS = Notification(
    "ntf_1", "payment.confirmed", 1_700_000_000_123, "Paid 12 ADA to t", "all of it", {"amount": "12 ADA"},
    "pay_1", "t", None,
)  # fmt: skip


async def received(receiver: Receiver) -> Call:
    webhook = Webhook(receiver.url, KEY)
    try:
        links = {"approve_url": "https://a.example/decide"}
        assert await webhook.send(NEWS, links, SystemClock().now_ms()) is None
    finally:
        await webhook.aclose()
    (call,) = receiver.calls
    return call


def examples() -> list[dict[str, object]]:
    """The names that the page's examples define."""
    found: list[dict[str, object]] = []
    for example in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S):
        names: dict[str, object] = {}
        exec(example, names)
        found.append(names)
    return found


async def test_the_body_has_type_timestamp_and_data(receiver: Receiver) -> None:
    call = await received(receiver)
    assert call.headers["content-type"] == "application/json"
    assert call.headers["user-agent"] == USER_AGENT
    assert json.loads(call.body) == {
        "type": "payment.confirmed",
        "timestamp": "2023-11-14T22:13:20.123Z",
        "data": {
            "id": "ntf_1",
            "title": "Paid 12 ADA to t",
            "text": "all of it",
            "amount": "12 ADA",
            "payment": "pay_1",
            "merchant": "t",
            "approve_url": "https://a.example/decide",
        },
    }


async def test_a_webhook_that_asks_to_wait_gets_nothing_until_then(receiver: Receiver) -> None:
    webhook = Webhook(receiver.url, KEY)
    receiver.status, receiver.retry_after = 503, "3600"
    try:
        assert await webhook.send(NEWS, {}, 1) == Missed("it answered 503", 3600)
        receiver.status = 204
        waiting = await webhook.send(NEWS, {}, 1)
    finally:
        await webhook.aclose()
    assert waiting is not None
    assert re.fullmatch("it asked to wait 3[0-9]{3} s more", waiting.why)
    assert len(receiver.calls) == 1


async def test_the_standard_library_verifies_a_notification_and_no_other(receiver: Receiver) -> None:
    call, verifier = await received(receiver), Verifier(SECRET)
    assert verifier.verify(call.body, call.headers)["type"] == "payment.confirmed"
    with pytest.raises(WebhookVerificationError):
        verifier.verify(call.body.replace(b"12 ADA", b"13 ADA"), call.headers)
    with pytest.raises(WebhookVerificationError):
        verifier.verify(call.body, call.headers | {"webhook-id": "ntf_2"})
    with pytest.raises(WebhookVerificationError):
        Verifier("whsec_" + base64.b64encode(b"x" * 24).decode()).verify(call.body, call.headers)


async def test_the_examples_of_the_page_verify_a_notification(receiver: Receiver) -> None:
    call = await received(receiver)
    by_library, by_hand = examples()
    assert by_library["verified"](SECRET, call.headers, call.body)["data"]["id"] == "ntf_1"  # type: ignore[operator]

    def is_genuine(call: Call, secret: str = SECRET) -> bool:
        return bool(by_hand["is_genuine"](secret, call.headers, call.body))  # type: ignore[operator]

    assert is_genuine(call)
    assert not is_genuine(call, "whsec_" + base64.b64encode(b"x" * 24).decode())
    assert not is_genuine(replace(call, body=call.body.replace(b"12 ADA", b"13 ADA")))
    assert not is_genuine(replace(call, headers=call.headers | {"webhook-id": "ntf_2"}))
    assert not is_genuine(replace(call, headers=call.headers | {"webhook-timestamp": "1614265330"}))


def test_a_signature_equals_that_of_the_standard_webhooks_library() -> None:
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize(
    "secret",
    [
        "a canary without a prefix",
        "whsec_",
        "whsec_no base64",
        "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(),
        "whsec_" + "é" * 32,
    ],
)
def test_an_invalid_webhook_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(Refused, match="openssl rand") as caught:
        signing_key(secret)
    assert caught.value.name == "config_invalid"
    assert secret.removeprefix("whsec_") == "" or secret not in str(caught.value)
