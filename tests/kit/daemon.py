"""The daemon as a process: its folder, its start, and its stop."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kit.canaries import plant
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.wallet.new_keystore import create

WORDS = plant("the recovery words", "abandon " * 23 + "art")
SOMEBODY = 12_345
PASSPHRASE = plant("the passphrase", "a canary in a passphrase")


def furnish(folder: Path, devnet: DevnetThread) -> Path:
    data = folder / "data"
    data.mkdir(mode=0o700)
    create(data / "keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
    Writer(data / "ledger.db").close()
    (folder / "passphrase").write_text(PASSPHRASE)
    (folder / "passphrase").chmod(0o600)
    write_config(folder, devnet)
    return folder


def write_config(folder: Path, devnet: DevnetThread, network: str = "devnet") -> None:
    (folder / "config.toml").write_text(
        f'network = "{network}"\ndata_dir = "{folder}/data"\n'
        f'[api]\nlisten = "127.0.0.1:0"\nsocket = "{folder}/s/payagent.sock"\n'
        f'[[chain.providers]]\nkind = "blockfrost"\nbase_url = "{devnet.chain_url}"\n'
        f'[keystore]\npassphrase_file = "{folder}/passphrase"\n'
    )


def command(folder: Path, *python: str, module: str = "payagent") -> list[str]:
    return [sys.executable, *python, "-m", module, "serve", "--config", str(folder / "config.toml")]


def start(folder: Path, preexec_fn: Callable[[], None] | None = None) -> tuple["subprocess.Popen[str]", Path]:
    """A running daemon and its socket; it has announced itself on stderr."""
    process, _, path = announced(folder, preexec_fn)
    return process, path


def start_on_port(folder: Path) -> tuple["subprocess.Popen[str]", int]:
    """As above, with its port."""
    process, port, _ = announced(folder)
    return process, port


def announced(
    folder: Path, preexec_fn: Callable[[], None] | None = None, module: str = "payagent"
) -> tuple["subprocess.Popen[str]", int, Path]:
    """`module`: another one that starts the daemon, such as `kit.next_release`."""
    process = subprocess.Popen(
        command(folder, module=module),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if found := re.fullmatch(r"payagent serves devnet on http://127\.0\.0\.1:([0-9]+) and (.+)\n", line):
            return process, int(found[1]), Path(found[2])
    raise AssertionError(f"the daemon ended with {process.wait(30)}: {line}")


def stop(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code, and its output since it announced itself."""
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    with process.stderr as said:
        talk = said.read()  # not communicate(), which misses what was read ahead with the announcement
    return process.wait(30), talk


def log_of_a_run(folder: Path, preexec_fn: Callable[[], None] | None = None) -> list[str]:
    """Everything a daemon writes from start to stop, in lines."""
    lines = []
    with subprocess.Popen(command(folder), stderr=subprocess.PIPE, text=True, preexec_fn=preexec_fn) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if line.startswith("payagent serves "):
                process.terminate()
    assert process.returncode == 0, lines
    return lines


def refused(folder: Path, *python: str, more: tuple[str, ...] = ()) -> tuple[int, str]:
    asked = [*command(folder, *python), *more]
    result = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stderr


def health(family: int, address: object, path: str = "/healthz") -> bytes:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect(address)  # type: ignore[arg-type]
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        with client.makefile("rb") as answer:
            return answer.read()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
