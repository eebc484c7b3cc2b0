"""`payagent demo`: every step is verified, and it leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kit.cli import invoke, spawn, until
from kit.effort import long_only
from kit.pages import ROOT
from kit.postgresql import needs_postgresql

from payagent import demo
from payagent.chain.open import KINDS, NAMED_BY_URL
from payagent.demo import DemoFailed, run_demo, verify
from payagent.demo.stage import Progress, Stage, stage


def children(pid: int) -> list[int]:
    """Process ids of the children, by the kernel's own list."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def test_the_demo_verifies_every_step_and_leaves_nothing_behind(tmp_path: Path) -> None:
    process = spawn("demo", environ={"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, out + err
    for words in (
        "revenue shares",
        "native token",
        "kill -9",
        "sum to zero",
        "An agent pays for a tool",
        "to the unit",
        "Every step was verified",
    ):
        assert words in out
    assert err == ""
    assert list(tmp_path.iterdir()) == []
    recorded = (ROOT / "docs/images/demo.txt").read_text()
    how = "run payagent demo > docs/images/demo.txt, then scripts/docs"
    assert without_figures(recorded) == without_figures(out), how


def test_the_demo_of_channels_pays_a_hundred_calls_by_two_transactions_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    process = spawn(
        "demo", "--channels", environ={"TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, ""), out + err
    for words in (
        "refused: channel_missing",
        "Each cost 0.001 ADA",
        "signed 0.1 ADA in all. The merchant counts the same.",
        "The channel is closing",
        "100 calls, two transactions",
        "4.9 ADA  locked in the channel",
        "0.1 ADA  used at the merchant",
        "to the unit",
        "`ledger verify` and `ledger reconcile` find nothing",
    ):
        assert words in out
    assert out.endswith("Every step was verified. Nothing is left behind.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", [("--fleet",), ("--keystore", "softhsm")])
def test_the_demo_of_channels_refuses_to_be_another_demo_too(other: tuple[str, ...]) -> None:
    result = invoke("demo", "--channels", *other)
    assert result.code == 2
    assert "choose one" in result.err


def without_figures(text: str) -> str:
    """The text without ids, addresses, amounts and their columns."""
    return re.sub(r" +", " ", re.sub(r"(?:addr_test1|pay_)\w+|[0-9a-f]{64}|[0-9][0-9.:]*", "#", text))


@contextmanager
def in_silence() -> Iterator[Progress]:
    yield lambda _text: None


@pytest.fixture(scope="module")
def on() -> Iterator[Stage]:
    """The demo's parts, without a daemon."""
    with stage(in_silence, {}) as parts:
        yield parts


def test_without_the_extra_the_demo_names_it_and_goes_on(on: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    told: list[str] = []
    demo._call_a_tool(on, told.append)
    assert "needs the extra mcp. Run pipx install" in told[-1]


def test_a_demo_that_waits_too_long_says_that_the_machine_may_be_busy(on: Stage) -> None:
    with pytest.raises(DemoFailed, match=r"timed out after 0 s: the moon\. The machine may be busy"):
        on.until("the moon", lambda: False, 0.01)


def test_a_signal_during_the_demo_stops_its_daemon() -> None:
    before = {*children(os.getpid())}

    def play() -> None:
        with stage(in_silence, {}) as parts:
            parts.daemon.start()
            assert len({*children(os.getpid())} - before) == 1
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        play()
    assert {*children(os.getpid())} == before


@long_only
def test_stopping_the_demo_stops_its_daemon(tmp_path: Path) -> None:
    log = tmp_path / "out"
    with log.open("w") as out:
        process = spawn("demo", stdout=out, stderr=subprocess.PIPE)
        until(lambda: "is ready" in log.read_text(), "the demo does not start")
        (daemon,) = children(process.pid)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not Path(f"/proc/{daemon}").exists()


@long_only
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != NAMED_BY_URL])
def test_the_demo_reads_the_chain_from_each_kind_of_provider(kind: str) -> None:
    result = invoke("demo", "--provider", kind)
    assert result.code == 0, result.err
    assert "The ledger agrees, to the unit." in result.out


def test_the_demo_refuses_a_kind_that_there_is_not() -> None:
    result = invoke("demo", "--provider", "koois")
    assert result.code == 1
    assert "--provider: write one of blockfrost" in result.err


@long_only
@needs_postgresql
def test_the_demo_of_a_fleet_carries_on_when_a_daemon_is_killed_and_leaves_nothing_behind() -> None:
    # PostgreSQL runs as another user, who could not enter a folder of pytest's
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        command = spawn(
            "demo", "--fleet", environ={"TMPDIR": folder}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = command.communicate(timeout=180)
        assert list(Path(folder).iterdir()) == []
    assert (command.returncode, err) == (0, ""), out + err
    for words in (
        "pays from account 2",
        "kill -9",
        "takes account",
        "sum to zero",
        "to the unit",
        "ledger verify",
    ):
        assert words in out
    assert out.count("The chain shows one transaction.") == 2
    assert out.endswith("Every step was verified. Nothing is left behind.\n")


def test_without_the_extra_the_demo_of_a_fleet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    result = invoke("demo", "--fleet")
    assert result.code == 2
    assert "[postgresql]" in result.err


def test_the_demo_fails_with_the_daemons_output_when_the_daemon_ends(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nprint('no more', flush=True)\nos._exit(7)\n")
    told: list[str] = []
    with pytest.raises(DemoFailed, match=r"exit code 7(?s:.*)no more"):
        run_demo(told.append, in_silence, {"PYTHONPATH": str(tmp_path)})
    assert not any("verified" in line for line in told)


def test_the_demo_fails_when_payment_or_ledger_differ_from_the_chain(on: Stage) -> None:
    address = on.wallet.address
    tx_hash = on.control("faucet", {"address": address, "lovelace": "7000000"})["tx_hash"]
    on.control("blocks", {"count": 1})
    output = {"role": "pay_to", "address": address, "asset": "lovelace", "units": "7000000"}
    paid = {"tx_hash": tx_hash, "fee": on.chain(f"/txs/{tx_hash}")["fees"], "outputs": [output]}
    verify.paid(on, paid)
    for wrong in (
        {"fee": "1"},
        {"outputs": [output | {"units": "7000001"}]},
        {"outputs": [output | {"address": "addr_test1"}]},
    ):
        with pytest.raises(DemoFailed):
            verify.paid(on, paid | wrong)
    with pytest.raises(DemoFailed):
        verify.transactions(on, before=0, count=0)
    rows = [
        {"account": "wallet", "asset": "lovelace", "units": "7000000"},
        {"account": "external", "asset": "lovelace", "units": "-7000000"},
    ]
    verify.books(on, rows)
    with pytest.raises(DemoFailed, match="sum"):
        verify.books(on, rows[:1])
    with pytest.raises(DemoFailed, match="chain"):
        verify.books(on, [rows[0] | {"units": "7000001"}, rows[1] | {"units": "-7000001"}])
