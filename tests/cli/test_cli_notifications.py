"""`payagent notifications` on a real daemon with a real webhook, and the commands of the page about it."""

from collections.abc import Iterator

import pytest
from kit.cli import Shop, running, until, write_private
from kit.dashboard import visitor
from kit.pages import blocks
from kit.webhook import SECRET, Receiver, target

PAGE = "docs/how-to/receive-notifications.md"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver().serving() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def told(closed_shop: Shop, receiver: Receiver) -> Iterator[Shop]:
    """A running daemon without money that tells the receiver of payments only."""
    secret = write_private(closed_shop.folder / "hook", SECRET + "\n")
    table = target(receiver.url, secret, more='events = ["signing.*", "alert.cleared"]\n')
    closed_shop.config.write_text(closed_shop.config.read_text() + table)
    with running(closed_shop):
        yield closed_shop


def test_targets_are_listed_tried_and_sent_again(told: Shop, receiver: Receiver) -> None:
    sent = told.payagent("notifications", "test", "ops")
    assert (sent.code, sent.json["problem"], receiver.types()[-1]) == (0, None, "test")
    receiver.status = 503
    missed = told.payagent("notifications", "test", "ops", "--human")
    assert (missed.code, missed.out) == (4, "Not taken: it answered 503.\n")
    assert told.payagent("notifications", "test", "nobody").problem == "not_found"

    told.payagent("pause")
    until(lambda: receiver.types()[-1] == "signing.paused", "the target is not told")
    until(lambda: log(told)[0]["last_problem"], "the failure is not noted")
    (waiting,) = log(told, "--state", "waiting", "--target", "ops")
    assert (waiting["type"], waiting["last_problem"]) == ("signing.paused", "it answered 503")
    (listed,) = told.payagent("notifications").json["notifications"]
    assert (listed["name"], listed["kind"], listed["events"]) == ("ops", "webhook", ["signing.*", "alert.cleared"])
    assert listed["waiting"] == 1
    assert "it answered 503" in told.payagent("notifications", "list", "--human").out

    receiver.status = 204
    assert told.payagent("notifications", "replay", waiting["id"]).json["state"] == "waiting"
    until(lambda: log(told)[0]["state"] == "delivered", "it is not delivered")
    assert receiver.ids()[-1] == waiting["id"]
    (after,) = told.payagent("notifications").json["notifications"]
    assert (after["waiting"], after["last_delivered_at"] == listed["last_delivered_at"]) == (0, False)
    assert "signing.paused" in told.payagent("notifications", "log", "--human").out
    told.payagent("resume")
    until(lambda: receiver.types()[-1] == "alert.cleared", "the end is not told")
    page = told.payagent("notifications", "log", "--limit", "1").json
    assert [one["type"] for one in page["deliveries"]] == ["alert.cleared"]
    assert page["cursor"] is not None

    commands = "".join(blocks("Receive notifications", PAGE)[1:])
    for line in commands.splitlines():
        ran = told.payagent(*line.replace("ntf_3f9ad5b1c0e2476d8a91be07", waiting["id"]).split()[1:])
        assert ran.code == 0, f"{line}: {ran.err}"


def test_the_dashboard_shows_the_targets_tests_one_and_sends_again(told: Shop, receiver: Receiver) -> None:
    me = visitor(told)
    tested = me.post("/ui/settings/targets/ops/test", me.hidden("/ui/settings"))
    assert (tested.headers["location"], "test" in receiver.types()) == ("/ui/settings", True)
    told.payagent("pause")
    until(lambda: receiver.types()[-1] == "signing.paused", "the target is not told")
    until(lambda: log(told)[0]["state"] == "delivered", "it is not delivered")
    page = me.get("/ui/settings").text
    assert "ops took the test." in page
    assert "signing.*, alert.cleared" in page
    sent = str(log(told)[0]["id"])
    assert f'action="/ui/settings/deliveries/{sent}/replay"' in page
    me.post(f"/ui/settings/deliveries/{sent}/replay", me.hidden("/ui/settings"))
    until(lambda: receiver.ids().count(sent) > 1, "it is not sent again")
    told.payagent("resume")
    until(lambda: receiver.types()[-1] == "alert.cleared", "the end is not told")


def log(shop: Shop, *more: str) -> list[dict[str, object]]:
    """The deliveries, newest first."""
    return list(shop.payagent("notifications", "log", *more).json["deliveries"])
