"""Notifications by ntfy, Slack and Discord: what a person sees, and what a merchant's words cannot do."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest
from kit.push_services import PushService

from payagent.core.notifications import Missed, Notification
from payagent.outbound.push import Push

LINKS = {
    "approve_url": "https://payagent.internal/decide/pay_1/approve/x",
    "deny_url": "https://payagent.internal/decide/pay_1/deny/y_z-",
}
HOSTILE = [
    "see https://evil.example/a?b=c or evil.example/d",
    "[Approve](https://evil.example) and **bold** `code` ||x|| > y",
    "@everyone @here <@123> <!channel> <@U1> <https://evil.example|Approve> &lt;!here&gt;",
    "/approve #tag $TAG a@evil.example http://1.2.3.4/",
    "line\nApproved\u2028by you\u202e \u200bhttps:\u200b//evil.example",
    "https://evil.example/" + "@x." * 2000 + "\U0001f4b8" * 2000,
]


@pytest.fixture(params=["ntfy", "slack", "discord"])
def service(request: pytest.FixtureRequest) -> Iterator[PushService]:
    with PushService(request.param).serving() as service:
        yield service


def news(title: str, text: str) -> Notification:
    return Notification("ntf_1", "approval.asked", 1, title, text, {}, "pay_1", "t", "writer")


async def sent(
    service: PushService, *notifications: Notification, token: str | None = None
) -> list[Missed | None]:
    push = Push(service.kind, service.url, token)
    try:
        return [await push.send(one, LINKS if one.payment_id else {}, 1) for one in notifications]
    finally:
        await push.aclose()


async def test_a_notification_shows_its_title_its_text_and_the_links_that_decide(service: PushService) -> None:
    assert await sent(service, news("A payment waits for you", "6 ADA to t")) == [None]
    (seen,) = service.seen
    assert "A payment waits for you" in seen.text
    assert "6 ADA to t" in seen.text
    assert seen.links == list(LINKS.values())


async def test_an_amount_is_whole_and_the_lines_come_in_their_order(service: PushService) -> None:
    lines = ("App: writer", "Purpose: 1.5 pages", "pay_1")
    asked = replace(news("Approve 12\u202f500.25 ADA to t?", "; ".join(lines)), lines=lines)
    assert await sent(service, asked) == [None]
    (seen,) = service.seen
    assert seen.text.startswith("\n".join(("Approve 12\u202f500.25 ADA to t?", *lines)))
    assert seen.links == list(LINKS.values())
    assert seen.buttons == ([] if service.kind == "discord" else ["Approve", "Deny"])


@pytest.mark.parametrize("words", HOSTILE)
async def test_words_of_a_merchant_form_no_link_mention_or_line(service: PushService, words: str) -> None:
    assert await sent(service, news(words, words)) == [None]
    (seen,) = service.seen
    assert seen.links == list(LINKS.values())
    assert seen.mentions == []
    assert "Approved\n" not in seen.text
    assert "\u202e" not in seen.text


async def test_the_token_of_a_closed_topic_is_sent_as_a_bearer_token(service: PushService) -> None:
    await sent(service, news("x", "y"), token="tk_of_a_topic")
    assert service.seen[0].headers["authorization"] == "Bearer tk_of_a_topic"


async def test_a_service_that_asks_to_wait_gets_nothing_until_then(service: PushService) -> None:
    service.failures = [(500, {}), (429, {"Retry-After": "3600"})]
    failed, told, waiting = await sent(service, *[news("x", "y")] * 3)
    assert (failed, told) == (Missed("it answered 500"), Missed("it answered 429", 3600))
    assert waiting is not None
    assert re.fullmatch("it asked to wait 3[0-9]{3} s more", waiting.why)
    assert 3000 < (waiting.wait_s or 0) <= 3600
    assert (service.refused, service.seen) == (2, [])


async def test_a_service_that_cannot_be_reached_is_a_problem_without_its_url(service: PushService) -> None:
    service.url = "http://127.0.0.1:1/a-secret-topic"
    assert await sent(service, news("x", "y")) == [Missed("ConnectError")]
