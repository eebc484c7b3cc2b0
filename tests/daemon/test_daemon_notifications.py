"""The daemon tells the target of its config, and keeps the target's secret."""

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from kit.canaries import plant
from kit.daemon import refused, start, stop
from kit.webhook import KEY, SECRET, Receiver, target
from standardwebhooks import Webhook as Verifier

from payagent.core.problems import Refused
from payagent.doctor.files import check_files
from payagent.settings.loading import load_settings


@pytest.fixture
def secret_file(folder: Path, receiver: Receiver) -> Path:
    """A daemon's folder whose config names the receiver; its secret."""
    path = folder / "webhook-secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    with (folder / "config.toml").open("a") as config:
        config.write('[alerts]\nwallet_below = "20 ADA"\n' + target(receiver.url, path))
    return path


def test_the_daemon_tells_of_its_empty_wallet_once_across_restarts(
    folder: Path, secret_file: Path, receiver: Receiver
) -> None:
    talks = []
    for _ in range(2):
        process, _ = start(folder)
        assert receiver.called.wait(60)
        code, talk = stop(process)
        assert code == 0, talk
        talks.append(talk)
    assert receiver.said() == [("wallet_low", "wallet")]
    assert Verifier(SECRET).verify(receiver.calls[0].body, receiver.calls[0].headers)["type"] == "balance.low"
    assert re.search(r'"kind": ?"wallet_low"', talks[0])
    for secret in (SECRET, SECRET.removeprefix("whsec_"), KEY.decode(), receiver.url):
        assert secret not in "".join(talks)
    assert secret_file.exists()
    with closing(sqlite3.connect(folder / "data/ledger.db")) as conn:
        ((delivered_at_ms, tries),) = conn.execute("SELECT delivered_at_ms, tries FROM notification_deliveries")
    assert delivered_at_ms is not None
    assert tries == 0


def test_doctor_checks_the_secret_of_a_target(folder: Path, secret_file: Path) -> None:
    config = folder / "config.toml"
    settings = load_settings(config, {})

    def found() -> Refused | None:
        (one,) = [one for one in check_files(settings, config, {}) if one.name == "secret of ops"]
        return one.problem

    assert found() is None
    secret_file.chmod(0o644)
    assert "open to others" in str(found())


def test_the_daemon_refuses_to_start_with_an_invalid_webhook_secret(folder: Path, secret_file: Path) -> None:
    weak = plant("a weak secret", "whsec_c2hvcnQtY2FuYXJ5")
    secret_file.write_text(weak)
    code, talk = refused(folder)
    assert (code, weak in talk) == (2, False)
    assert "notifications.secret_file" in talk


def test_the_daemon_refuses_to_start_with_a_bot_token_that_is_none(folder: Path) -> None:
    token = plant("a bot's token", "123:a/../canary")
    (folder / "bot").touch(mode=0o600)
    (folder / "bot").write_text(token)
    with (folder / "config.toml").open("a") as config:
        config.write(f'[[notifications]]\nname = "phone"\nkind = "telegram"\nsecret_file = "{folder / "bot"}"\n')
    code, talk = refused(folder)
    assert (code, token in talk) == (2, False)
    assert "bot's token" in talk


def test_the_daemon_refuses_to_start_with_one_bot_for_two_targets(folder: Path) -> None:
    (folder / "bot").touch(mode=0o600)
    (folder / "bot").write_text(plant("a shared bot's token", "123456:a-canary-of-a-shared-bot"))
    with (folder / "config.toml").open("a") as config:
        for name in ("phone", "desk"):
            config.write(f'[[notifications]]\nname = "{name}"\nkind = "telegram"\n')
            config.write(f'secret_file = "{folder / "bot"}"\n')
    code, talk = refused(folder)
    assert code == 2
    assert "desk needs a bot of its own" in talk
