"""A terminal gets tables, questions and words; a pipe gets JSON and no question. Streams may be closed."""

import io
import json
import os
import re
import stat
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TextIO

import pytest
from kit.canaries import plant
from kit.cli import Result, Shop, spawn, write_private
from kit.effort import long_only, pick
from kit.terminal import Session, at_terminal

from payagent.api.http.tokens import hash_token
from payagent.cli import run
from payagent.cli.options import show_units
from payagent.cli.terminal import Field, Terminal
from payagent.core.money import LOVELACE
from payagent.core.policy import Limit, Scope, Window
from payagent.secret_file import read_secret_file
from payagent.settings.loading import load_settings
from payagent.store.db.readers import Readers
from payagent.store.rows import apps, limit_counters

PASSPHRASE = plant("the typed passphrase", "typed-by-a-canary")
READER_GONE = 141
ALL_CLOSED = "<&- >&- 2>&-"
SHOWN, UNKNOWN = ("wallet",), ("payments", "show", "pay_none")
OTHER_SCREEN, SCREEN = "\x1b[?1049h", "\x1b[?1049l"


def test_a_terminal_gets_a_table_and_json_when_forced(shop: Shop) -> None:
    with at_terminal("wallet", "--config", shop.config) as table:
        assert table.end() == 0
    assert "available" in table.seen
    assert shop.made["address"] in table.seen
    with at_terminal("wallet", "--json", "--config", shop.config) as forced:
        assert forced.end() == 0
    assert json.loads(forced.seen)["address"] == shop.made["address"]


@pytest.mark.parametrize(("encoding", "number"), [("utf-8", "12\u202f500.5"), ("latin-1", "12500.5")])
def test_thousands_are_separated_where_the_output_is_utf_8(encoding: str, number: str) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    told = Terminal(io.StringIO(), stream, stream, forced_json=False)
    told.line(f"it leaves 12500.5 ADA, and {show_units(LOVELACE, 12_500_500_000)}")
    assert written.getvalue().decode(encoding) == f"it leaves {number} ADA, and {number} ADA\n"


def test_paying_at_a_terminal_shows_progress_and_header_lines(shop: Shop) -> None:
    file = shop.saved("at a terminal")
    with at_terminal("pay", file, "--merchant", "t", "--config", shop.config) as session:
        assert session.end() == 0
    assert "\r" in session.seen
    assert "X-Payment: " in session.seen


def test_progress_is_not_written_to_standard_output(shop: Shop) -> None:
    """At a terminal with its output in a pipe, as `payagent pay ... | jq` is."""
    file = shop.saved("into a pipe")
    reading, writing = os.pipe()
    with at_terminal("pay", file, "--merchant", "t", "--config", shop.config, stdout=writing) as session:
        assert session.end() == 0
        os.close(writing)
        data = os.read(reading, 65536)
        os.close(reading)
    assert set(json.loads(data)) >= {"X-Invoice-Id", "X-Payment"}
    assert "\r" in session.seen


WAITS = {"id": "pay_1", "state": "in_flight", "ready": False, "tx_hash": "ab", "headers": {"X-Payment": "ab"}}


@dataclass
class Waiting:
    """A link to a daemon that has signed; `code` is why a new payment would be refused now."""

    code: str
    asked: int = 0

    def get(self, _path: str, **_query: object) -> dict[str, object]:
        self.asked += 1
        return WAITS | {"ready": self.asked == 3}

    def readiness(self) -> dict[str, object]:
        return {"code": self.code, "checks": {"chain": "no provider tells its tip"}}


def waited(link: Waiting) -> tuple[int, str]:
    pay = import_module("payagent.cli.pay")
    terminal = Terminal(io.StringIO(), io.StringIO(), talk := io.StringIO())
    payment = pay._wait(terminal, link, WAITS)
    return pay._outcome(terminal, payment), talk.getvalue()


def test_pay_stops_waiting_when_no_provider_shows_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("payagent.cli.pay"), "UNSEEN_MAX_S", 0)
    code, talk = waited(Waiting("chain_not_ready"))
    assert code == 8
    assert "cannot be read: no provider tells its tip. The payment continues" in talk
    code, talk = waited(Waiting("external_spend"))
    assert code == 0, "a signed payment still lands while signing is stopped"
    assert "cannot be read" not in talk


def test_send_asks_for_confirmation_first(shop: Shop) -> None:
    before = len(shop.payments())
    send = ("wallet", "send", shop.made["address"], "--amount", "3 ADA", "--config", shop.config)
    with at_terminal(*send) as session:
        session.expect("[y/N]")
        session.type("n")
        assert session.end() == 130
    assert len(shop.payments()) == before


def test_send_all_requires_yes_even_at_a_terminal(shop: Shop) -> None:
    before = len(shop.payments())
    with at_terminal("wallet", "send", shop.made["address"], "--all", "--config", shop.config) as session:
        session.expect("--yes")
        assert session.end() == 2
    assert len(shop.payments()) == before


def test_send_with_yes_asks_nothing(shop: Shop) -> None:
    send = ("wallet", "send", shop.made["address"], "--amount", "3 ADA", "--yes", "--config", shop.config)
    with at_terminal(*send) as session:
        assert session.end() == 0
    assert "[y/N]" not in session.seen


def answer(session: Session, *answers: tuple[str, str]) -> None:
    for question, text in answers:
        session.expect(question)
        session.type(text)


def write_down(session: Session) -> list[str]:
    """The words of the other screen, which are then left."""
    session.expect("two of them.")
    session.expect("Press Enter")
    words = re.findall(r"\b[1-9][0-9]? ([a-z]+)", session.seen[session.seen.rindex("two of them.") :])
    session.type("")
    assert len(words) == 24
    return words


def give_two_back(session: Session, words: list[str]) -> None:
    for _ in range(2):
        session.expect("Word ")
        start = session.seen.rindex("Word ")
        session.expect(": ")
        session.type(words[int(session.seen[start:].split()[1].strip(":")) - 1])


def test_init_asks_for_its_settings_and_shows_the_recovery_words_once(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    with at_terminal("init", "--config", config, "--data-dir", tmp_path / "data") as session:
        answer(
            session,
            ("Network", "devnet"),
            ("Chain provider", "127.0.0.1:1"),
            ("or a base URL", "http://127.0.0.1:1/api/v0"),
            ("Merchant", "http://elsewhere.example"),
            ("accepted only for this machine", "http://127.0.0.1:2/chat?from=docs"),
            ("short name", "shop"),
            ("partner name", "me"),
            ("first program", "operator"),
            ("not 'operator'", "bot"),
            ("in 24 hours", "5"),
            ("has no unit", "100001 ADA"),
        )
        session.expect("at least 8 characters. It encrypts")
        for too_short in ("", "short"):
            answer(session, ("Passphrase", too_short))
            session.expect("at least 8 characters")
        answer(session, ("Passphrase", PASSPHRASE), ("Repeat it", "another"))
        session.expect("not the same")
        answer(session, ("Passphrase", PASSPHRASE), ("Repeat it", PASSPHRASE))
        words = write_down(session)
        session.expect("Word ")
        session.type("not-the-word")
        session.expect("was not the word")
        assert write_down(session) == words
        give_two_back(session, words)
        assert session.end() == 0
    before, _, after = session.seen.partition(OTHER_SCREEN)
    _, _, after = after.partition(SCREEN)
    assert not any(f" {number} {word} " in before + after for number, word in enumerate(words, 1))
    assert "wallet's daily limit is 100000 ADA" in session.seen.replace("\u202f", "")
    assert "Test ADA is free:\n  curl -s http://127.0.0.1:1/devnet/faucet " in session.seen
    for command in ("serve", "doctor", "wallet"):
        assert f"  payagent {command} --config {config}  #" in session.seen
    merchant = load_settings(config, {"HOME": str(tmp_path)}).merchants["shop"]
    assert (merchant.origin, merchant.partner) == ("http://127.0.0.1:2", "me")
    token = plant("the token of bot", (tmp_path / "data/bot.token").read_text().strip())
    for secret in (token, (tmp_path / "data/operator.token").read_text().strip()):
        assert secret not in session.seen
    for file in ("operator.token", "bot.token"):
        assert f"{tmp_path}/data/{file}" in session.seen
        assert stat.S_IMODE((tmp_path / "data" / file).stat().st_mode) == 0o600
    with closing(Readers(tmp_path / "data/ledger.db").conn) as conn:
        app = apps.by_token(conn, hash_token(token), 0)
        assert app is not None
        assert (app.name, app.scopes) == ("bot", {"pay"})
        assert limit_counters.limits(conn) == [Limit(Scope(app.id), LOVELACE, Window.DAY, 100_001_000_000)]
    assert PASSPHRASE not in session.seen
    assert not (tmp_path / "data/recovery-words.txt").exists()
    restored = tmp_path / "words"
    restored.write_text(" ".join(words))
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(PASSPHRASE)
    address = json.loads((tmp_path / "data/keystore.json").read_text())["address"]
    assert _restore(tmp_path, restored, passphrase) == address


@long_only
def test_init_with_all_that_it_needs_asks_nothing_even_at_a_terminal(tmp_path: Path) -> None:
    passphrase = write_private(tmp_path / "passphrase", PASSPHRASE)
    files = (
        "--config",
        tmp_path / "config.toml",
        "--data-dir",
        tmp_path / "data",
        "--passphrase-file",
        passphrase,
    )
    network = ("--network", "devnet", "--chain-url", "http://127.0.0.1:1/api/v0")
    with at_terminal("init", *network, *files) as session:
        give_two_back(session, write_down(session))
        assert session.end() == 0
    assert "first program" not in session.seen


def test_init_given_up_before_the_words_are_repeated_leaves_nothing(tmp_path: Path) -> None:
    passphrase = write_private(tmp_path / "passphrase", PASSPHRASE)
    files = ("--config", tmp_path / "it.toml", "--data-dir", tmp_path / "data", "--passphrase-file", passphrase)
    with at_terminal("init", "--network", "devnet", "--chain-url", "http://127.0.0.1:1/api/v0", *files) as session:
        write_down(session)
        session.expect("Word ")
        session.interrupt()
        session.type("")  # ends a read that begins just after the signal, which it does not interrupt
        assert session.end() == 130
    assert session.seen.index(OTHER_SCREEN) < session.seen.index(SCREEN)
    assert [path.name for path in tmp_path.iterdir()] == ["passphrase"]


def test_init_for_a_public_test_network_asks_for_the_project_id_without_showing_it(tmp_path: Path) -> None:
    passphrase = write_private(tmp_path / "passphrase", PASSPHRASE)
    secret = plant("a typed project id", "preprodCanaryOfTheTerminal")
    config = tmp_path / "etc/config.toml"
    files = ("--config", config, "--data-dir", tmp_path / "data", "--passphrase-file", passphrase)
    with at_terminal("init", "--network", "preprod", *files) as session:
        answer(
            session,
            ("Chain provider", "blockfrost"),
            ("Second provider", ""),
            ("Project id", secret),
            ("Merchant", "https://shop.example"),
            ("short name", ""),
            ("first program", ""),
            ("in 24 hours", ""),
        )
        give_two_back(session, write_down(session))
        assert session.end() == 0
    assert secret not in session.seen
    assert "docs.cardano.org/cardano-testnets/tools/faucet" in session.seen
    assert "partner name" not in session.seen
    settings = load_settings(config, {"HOME": str(tmp_path)})
    (provider,) = settings.chain.providers
    assert provider.base_url == "https://cardano-preprod.blockfrost.io/api/v0"
    assert provider.token_file == tmp_path / "etc/blockfrost-project-id"
    assert read_secret_file(provider.token_file) == secret
    assert settings.merchants["shop-example"].origin == "https://shop.example"


def _restore(tmp_path: Path, words: Path, passphrase: Path) -> str:
    from kit.cli import invoke

    again = invoke(
        *("init", "--json", "--network", "devnet", "--chain-url", "http://127.0.0.1:1/api/v0"),
        *("--config", tmp_path / "again.toml", "--data-dir", tmp_path / "again"),
        *("--passphrase-file", passphrase, "--restore", words),
    )
    return str(again.json["address"])


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\u202eevil", "\x9b31m"])
def test_control_characters_in_foreign_text_are_escaped(text: str) -> None:
    out = io.StringIO()
    terminal = Terminal(io.StringIO(), out, io.StringIO())
    terminal.line(text)
    terminal.table([{"merchant says": text}], [Field("merchant says")])
    shown = out.getvalue()
    assert not any(char in shown for char in "\x1b\r\u202e\x9b")
    assert ascii(text)[1:-1].split("\\")[1][:3] in shown


# --- closed streams: by a reader that went away, or from the start


def ended(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out or "", err or "")


def unread() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run_into(stdout: TextIO, shop: Shop, command: tuple[str, ...]) -> Result:
    """Run a command in this process with another standard output."""
    err = io.StringIO()
    code = run([*command, "--config", str(shop.config)], Terminal(io.StringIO(), stdout, err))
    return Result(code, "", err.getvalue())


@pytest.mark.parametrize(
    "command",
    [
        ("--help",),
        ("payments", "list", "--human"),
        ("--version",),
        ("payments", "list", "--help"),
        ("wallet",),
        ("wallet", "--human"),
        ("payments", "list", "--json"),
    ][: pick(2, 7)],
)
def test_a_reader_that_went_away_ends_the_command_silently(shop: Shop, command: tuple[str, ...]) -> None:
    config = ("--config", shop.config) if command[0] in ("wallet", "payments") and "--help" not in command else ()
    writing = unread()
    try:
        result = ended(spawn(*command, *config, stdout=writing, stderr=subprocess.PIPE))
    finally:
        os.close(writing)
    assert (result.code, result.err) == (READER_GONE, "")


def test_no_command_goes_on_after_its_reader_went_away(shop: Shop) -> None:
    for command in (SHOWN, (*SHOWN, "--human"), ("payments", "list"), ("payments", "list", "--human")):
        at_close = suppress(BrokenPipeError)  # what is left is written once more
        with at_close, os.fdopen(unread(), "w") as stdout, pytest.raises(BrokenPipeError):
            run_into(stdout, shop, command)


TO_A_FULL_DISK = (
    *(("payments", "--human"), ("ledger", "export")),
    *(("wallet",), ("wallet", "--human"), ("ledger", "verify")),
)


@pytest.mark.parametrize("command", TO_A_FULL_DISK[: pick(1, 5)], ids=" ".join)
def test_output_to_a_full_disk_is_write_failed(shop: Shop, command: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = ended(spawn(*command, "--config", shop.config, stdout=full, stderr=subprocess.PIPE))
    require_write_failed(result, command)
    assert "Traceback" not in result.err
    assert "Exception ignored" not in result.err


def test_every_kind_of_output_to_a_full_disk_is_write_failed(shop: Shop) -> None:
    for command in TO_A_FULL_DISK:
        with Path("/dev/full").open("w") as full:
            require_write_failed(run_into(full, shop, command), command)


def require_write_failed(result: Result, command: tuple[str, ...]) -> None:
    named = (
        "write_failed/answer" in result.err if "--human" in command else result.problem == "write_failed/answer"
    )
    assert (result.code, named) == (2, True), result.err
    assert "No space left on device" in result.err


def test_an_error_written_to_a_closed_pipe_exits_with_141(shop: Shop) -> None:
    """As in `payagent payments show pay_none 2>&1 | true`."""
    writing = unread()
    try:
        both = ended(spawn(*UNKNOWN, "--config", shop.config, stdout=writing, stderr=subprocess.STDOUT))
    finally:
        os.close(writing)
    assert both.code == READER_GONE


@pytest.mark.parametrize(
    ("command", "code", "closed"),
    [
        *((UNKNOWN, 2, "2>&-"), (SHOWN, 0, ">&-"), (UNKNOWN, 2, ALL_CLOSED), (SHOWN, 0, ALL_CLOSED)),
        *((SHOWN, 0, "<&-"), (SHOWN, 0, "2>&-"), (UNKNOWN, 2, "<&-"), (UNKNOWN, 2, ">&-")),
    ][: pick(3, 8)],
)
def test_closed_standard_streams_do_not_change_the_exit_code(
    shop: Shop, command: tuple[str, ...], code: int, closed: str
) -> None:
    started = spawn(
        *(*command, "--config", shop.config),
        under=("sh", "-c", f'"$@" {closed}', "sh"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    result = ended(started)
    assert (result.code, "Traceback" in result.err) == (code, False)
