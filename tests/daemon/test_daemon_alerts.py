"""Alerts: raised once when something runs low, cleared once when it is back, delivered to a webhook."""

import base64
import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from kit.agent import ADA, APP, DEVNET, Run, World
from kit.canaries import plant
from kit.daemon import refused, start, stop
from kit.webhook import Call, Receiver

from payagent.agent.base.alert_records import raise_alert
from payagent.agent.base.config import AgentConfig
from payagent.agent.base.prepaid import Buyer, ServedRequest
from payagent.agent.operator.alerts import AlertMonitor, crossing, retry_at_ms
from payagent.audit.finding import AuditFinding
from payagent.audit.signed_bytes import Owner
from payagent.audit.verify import verify
from payagent.core.problems import Refused
from payagent.core.version import USER_AGENT
from payagent.doctor.files import check_files
from payagent.log import Redactor, configure_logging
from payagent.outbound.webhook import Webhook, signature, signing_key
from payagent.settings.loading import load_settings
from payagent.store.db.unit import Unit
from payagent.store.rows import alerts
from payagent.store.rows import attempts_and_utxos as queries
from payagent.wallet.keys import derive, seed_from_words

SECRET = plant("the webhook's secret", "whsec_" + base64.b64encode(b"a canary that signs webhooks").decode())
KEY = signing_key(SECRET)
plant("the webhook's key", KEY.decode())
plant("the webhook's key in base64", SECRET.removeprefix("whsec_"))
MARK = 20 * ADA
SECOND, HOUR, DAY = 1000, 3_600_000, 86_400_000
PAGE = Path(__file__).parents[2] / "docs/how-to/receive-alerts.md"
ELSEWHERE = derive(seed_from_words("zoo " * 23 + "vote"), DEVNET).address


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What goes to the log, as the daemon writes it, but with nothing cut out of it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    out = io.StringIO()
    configure_logging(out, Redactor())
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(written: io.StringIO, *events: str) -> list[dict[str, object]]:
    return [said for line in written.getvalue().splitlines() if (said := json.loads(line))["event"] in events]


def marked(terms: AgentConfig) -> AgentConfig:
    merchants = {origin: replace(one, prepaid_alert_below=3) for origin, one in terms.merchants.items()}
    return replace(terms, wallet_below_lovelace=MARK, merchants=merchants)


@asynccontextmanager
async def life(world: World, receiver: Receiver | None):  # type: ignore[no-untyped-def]
    """One life of the agent, with its alerts."""
    webhook = None if receiver is None else Webhook(receiver.url, KEY)
    async with world.run(terms=marked) as run:
        yield run, AlertMonitor(run.context, webhook)
    if webhook is not None:
        await webhook.aclose()


def is_genuine(call: Call, secret: str = SECRET) -> bool:
    """Verify by the example on the page about alerts."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    names: dict[str, object] = {}
    exec(example, names)
    return bool(names["is_genuine"](secret, call.headers, call.body))  # type: ignore[operator]


def require_whole(run: Run) -> None:
    with run.context.snapshot() as conn:
        found = list(verify(conn, Owner(run.context.config.own, run.context.config.network)))
    assert not [one for one in found if isinstance(one, AuditFinding)], found


def told_in_the_ledger(run: Run) -> list[dict[str, str]]:
    rows = run.context.conn.execute("SELECT detail FROM events WHERE event = 'alert' ORDER BY seq")
    return [json.loads(detail) for (detail,) in rows]


def test_an_alert_is_raised_once_below_the_threshold_and_cleared_once_at_it() -> None:
    told, raised = [], False
    for left in (25, 20, 19, 18, 0, 19, 20, 30, 20, 19):
        if (is_low := crossing(left, 20, raised)) is not None:
            raised = is_low
            told.append((left, is_low))
    assert told == [(19, True), (20, False), (19, True)]


async def test_a_low_wallet_raises_one_alert_and_clears_it_once(
    world: World, receiver: Receiver, written: io.StringIO
) -> None:
    world.fund(30 * ADA)
    async with life(world, receiver) as (run, alerting):
        await alerting.run_once()
        assert receiver.calls == [], "the wallet was not read yet"
        await run.run_pass()
        await alerting.run_once()
        assert receiver.calls == []
        await run.agent.transfers.send(APP, ELSEWHERE, "lovelace", 15 * ADA, None)
        await run.settle_down()
        for _ in range(3):
            await alerting.run_once()
        assert receiver.said() == [("wallet_low", "wallet")]
        world.fund(5 * ADA, 10 * ADA)
        await run.run_pass()
        for _ in range(3):
            await alerting.run_once()
        assert receiver.said() == [("wallet_low", "wallet"), ("cleared", "wallet")]
        low, back = receiver.calls
        left = int(low.said["left"])
        assert 14 * ADA < left < 15 * ADA
        assert (low.said["unit"], low.said["below"]) == ("lovelace", str(MARK))
        assert (low.said["network"], low.said["address"]) == ("devnet", world.address)
        assert int(back.said["left"]) == left + 15 * ADA
        assert [low.said["id"], back.said["id"]] == receiver.ids()
        told = told_in_the_ledger(run)
        assert [(one["alert"], one["kind"], one["left"]) for one in told] == [
            (call.said["id"], call.said["kind"], call.said["left"]) for call in receiver.calls
        ]
        require_whole(run)
    logged = lines(written, "alert.raised", "alert.cleared")
    assert [(one["event"], one["alert"], one["kind"], one["level"]) for one in logged] == [
        ("alert.raised", low.said["id"], "wallet_low", "warning"),
        ("alert.cleared", back.said["id"], "cleared", "warning"),
    ]


async def test_pending_change_does_not_count_as_missing(world: World, receiver: Receiver) -> None:
    """The only UTxO is reserved, then spent, and its change is unconfirmed: that is not a low wallet."""
    world.fund(40 * ADA)
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        await run.pay()
        assert run.selectable() == set()
        await alerting.run_once()
        await run.settle_down()
        await alerting.run_once()
        assert receiver.calls == []


async def test_held_funds_do_not_count_towards_the_wallet_threshold(world: World, receiver: Receiver) -> None:
    world.fund(30 * ADA)
    world.settings(price="12000000")
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        await run.pay()
        await alerting.run_once()
        assert receiver.said() == [("wallet_low", "wallet")]


async def test_a_utxo_missing_from_the_chain_does_not_count(world: World, receiver: Receiver) -> None:
    world.fund(15 * ADA, 16 * ADA)
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        utxo = next(one for one in queries.utxos(run.context.conn) if one.lovelace == 16 * ADA)
        await run.context.write(
            "test", lambda unit: unit.conn.execute("UPDATE utxos SET state = 'missing' WHERE ref = ?", (utxo.ref,))
        )
        await alerting.run_once()
        assert [call.said["left"] for call in receiver.calls] == [str(15 * ADA)]


async def test_a_low_prepaid_balance_raises_an_alert_and_a_batch_in_flight_counts(
    world: World, receiver: Receiver
) -> None:
    world.fund(*[100 * ADA] * 3)
    world.settings(batch=4)
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        first = await run.pay("first")
        await alerting.run_once()
        assert receiver.calls == [], "four calls are in flight"
        await run.settle_down()
        await run.agent.deliveries.record_delivery(first.id, 200)
        await alerting.run_once()
        assert receiver.calls == [], "three are left"
        for number in range(2):
            buyer = Buyer("demo", world.address)
            await run.agent.prepaid_calls.record_call(
                ServedRequest(APP, world.origin, buyer, "POST", "/chat", f"k{number}")
            )
            await alerting.run_once()
        assert receiver.said() == [("prepaid_low", "prepaid:1")], "raised at two left, and not again at one"
        said = receiver.calls[0].said
        assert (said["left"], said["below"], said["unit"]) == ("2", "3", "calls")
        assert (said["merchant"], said["partner"], said["wallet"]) == (world.origin, "demo", world.address)
        await run.pay("another")
        await alerting.run_once()
        assert receiver.said()[1:] == [("cleared", "prepaid:1")]
        require_whole(run)


async def test_an_alert_raised_by_another_part_is_delivered_the_same_way(
    world: World, receiver: Receiver, written: io.StringIO
) -> None:
    async with life(world, receiver) as (run, alerting):
        for _ in range(2):
            now_ms = world.clock.now_ms()
            facts = {"detail": "no batch is sold"}
            await run.context.write(
                "test",
                lambda unit: raise_alert(unit, "topup_failed", "topup:1", facts, now_ms),  # noqa: B023
            )
            await alerting.run_once()
    assert receiver.said() == [("topup_failed", "topup:1")]
    (logged,) = lines(written, "alert.raised")
    assert (logged["kind"], logged["detail"]) == ("topup_failed", "no batch is sold")


async def test_a_webhook_request_is_signed_as_the_page_says(world: World, receiver: Receiver) -> None:
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        await alerting.run_once()
    (call,) = receiver.calls
    assert call.headers["content-type"] == "application/json"
    assert call.headers["user-agent"] == USER_AGENT
    assert is_genuine(call)
    assert not is_genuine(call, "whsec_" + base64.b64encode(b"x" * 24).decode())
    assert not is_genuine(replace(call, body=call.body.replace(b"wallet_low", b"wallet_max")))
    assert not is_genuine(replace(call, headers=call.headers | {"webhook-id": "alert_other"}))
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


async def test_an_alert_is_delivered_later_when_the_receiver_is_down_also_after_a_restart(
    world: World, receiver: Receiver, written: io.StringIO
) -> None:
    receiver.status = 503
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        for wait_ms in (0, 5 * SECOND, 30 * SECOND):
            world.clock.ahead_ms += wait_ms
            await alerting.run_once()
            await alerting.run_once()
        assert len(receiver.calls) == 3
    async with life(world, receiver) as (run, alerting):
        await alerting.run_once()
        assert len(receiver.calls) == 3, "two minutes are not over"
        receiver.status = 302
        world.clock.ahead_ms += 120 * SECOND
        await alerting.run_once()
        assert [call.path for call in receiver.calls] == ["/hook"] * 4, "a redirect was followed"
        receiver.status = 200
        world.clock.ahead_ms += 600 * SECOND
        await alerting.run_once()
        world.clock.ahead_ms += DAY
        await alerting.run_once()
        assert len(receiver.calls) == 5
        assert len(set(receiver.ids())) == len({call.body for call in receiver.calls}) == 1
        assert is_in_order([int(call.headers["webhook-timestamp"]) for call in receiver.calls])
        assert alerts.waiting(run.context.conn, 0) == []
        require_whole(run)
    assert len(lines(written, "alert.raised")) == 1
    assert [one["why"] for one in lines(written, "alert.not_delivered")] == [
        *["it answered 503"] * 3,
        "it answered 302",
    ]
    assert receiver.url not in written.getvalue()


async def test_alerts_delayed_by_a_wrong_clock_are_sent_once_it_is_right(world: World, receiver: Receiver) -> None:
    """Both were raised while the clock was ahead, the first failed once; both are sent after a restart."""
    receiver.status = 503
    world.clock.ahead_ms = DAY
    async with life(world, receiver) as (run, alerting):
        await run.context.write("test", lambda unit: raise_one(unit, "first", run.context.ports.clock.now_ms()))
        await alerting.run_once()
        await run.context.write("test", lambda unit: raise_one(unit, "second", run.context.ports.clock.now_ms()))
        assert len(receiver.calls) == 1
    world.clock.ahead_ms, receiver.status = 0, 204
    async with life(world, receiver) as (run, alerting):
        await alerting.run_once()
        assert receiver.said()[1:] == [("paused", "first"), ("paused", "second")]
        receiver.status = 503
        await run.context.write("test", lambda unit: raise_one(unit, "third", run.context.ports.clock.now_ms()))
        for _ in range(2):
            await alerting.run_once()
        assert receiver.said()[3:] == [("paused", "third")], "its retry waits by the clock that is right"


def raise_one(unit: Unit, subject: str, now_ms: int) -> None:
    raise_alert(unit, "paused", subject, {"detail": "for a test"}, now_ms)


def is_in_order(times_s: list[int]) -> bool:
    return all(
        after - before >= least
        for before, after, least in zip(times_s, times_s[1:], (5, 30, 120, 600), strict=False)
    )


async def test_an_unreachable_receiver_is_logged_and_stops_nothing(world: World, written: io.StringIO) -> None:
    receiver = Receiver()
    receiver.server.server_close()
    async with life(world, receiver) as (run, alerting):
        await run.run_pass()
        await alerting.run_once()
        await alerting.run_once()
        assert [one.tries for one in alerts.after(run.context.conn, 0)] == [1]
    (logged,) = lines(written, "alert.not_delivered")
    assert logged["why"] == "ConnectError"


def test_delivery_is_retried_with_growing_delays_for_three_days() -> None:
    now_ms, tries, waits = 0, 0, []
    while (again_ms := retry_at_ms(0, tries := tries + 1, now_ms)) is not None:
        waits.append((again_ms - now_ms) // 1000)
        now_ms = again_ms
    assert waits[:7] == [5, 30, 120, 600, 3600, 21600, 21600]
    assert 3 * DAY - 6 * HOUR <= now_ms < 3 * DAY


async def test_an_old_alert_is_not_sent_when_a_webhook_is_configured_later(
    world: World, receiver: Receiver
) -> None:
    async with life(world, None) as (run, alerting):
        await run.run_pass()
        await alerting.run_once()
    world.clock.ahead_ms += 4 * DAY
    async with life(world, receiver) as (run, alerting):
        await alerting.run_once()
        assert (len(receiver.calls), len(alerts.after(run.context.conn, 0))) == (0, 1)


@pytest.fixture
def secret_file(folder: Path, receiver: Receiver) -> Path:
    """A daemon's folder whose config names the receiver; its secret."""
    path = folder / "webhook-secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    with (folder / "config.toml").open("a") as config:
        config.write(
            f'[alerts]\nwallet_below = "20 ADA"\nwebhook_url = "{receiver.url}"\nwebhook_secret_file = "{path}"\n'
        )
    return path


def test_the_daemon_sends_an_alert_for_its_empty_wallet(
    folder: Path, secret_file: Path, receiver: Receiver
) -> None:
    process, _ = start(folder)
    assert receiver.called.wait(60)
    code, talk = stop(process)
    assert code == 0, talk
    assert receiver.said() == [("wallet_low", "wallet")]
    assert is_genuine(receiver.calls[0])
    assert re.search(r'"kind": ?"wallet_low"', talk)
    for secret in (SECRET, SECRET.removeprefix("whsec_"), KEY.decode(), receiver.url):
        assert secret not in talk
    assert secret_file.exists()


def test_doctor_checks_the_webhook_secret(folder: Path, secret_file: Path) -> None:
    config = folder / "config.toml"
    settings = load_settings(config, {})

    def found() -> Refused | None:
        (one,) = [one for one in check_files(settings, config, {}) if one.name == "webhook secret"]
        return one.problem

    assert found() is None
    secret_file.chmod(0o644)
    assert "open to others" in str(found())


def test_the_daemon_refuses_to_start_with_an_invalid_webhook_secret(folder: Path, secret_file: Path) -> None:
    weak = plant("a weak secret", "whsec_c2hvcnQtY2FuYXJ5")
    secret_file.write_text(weak)
    code, talk = refused(folder)
    assert (code, weak in talk) == (2, False)
    assert "alerts.webhook_secret_file" in talk
