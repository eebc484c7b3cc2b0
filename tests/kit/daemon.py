"""The daemon as a process: its folder, its start, and its stop.

It is forked from a process that has imported it (kit.forks), unless a test asks for a fresh interpreter.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from kit.canaries import plant
from kit.forks import Forked, Process
from payagent.core.network import NETWORKS
from payagent.devnet.server import DevnetThread
from payagent.store.db.writer import Writer
from payagent.wallet.new_keystore import create

WORDS = plant("the recovery words", "abandon " * 23 + "art")
SOMEBODY = 12_345
PASSPHRASE = plant("the passphrase", "a canary in a passphrase")


@cache
def _empty_wallet() -> TemporaryDirectory[str]:
    """A keystore and a ledger, made once."""
    made = TemporaryDirectory(prefix="payagent-wallet-")
    create(Path(made.name) / "keystore.json", WORDS, PASSPHRASE, NETWORKS["devnet"], scrypt_n=2**4)
    Writer(Path(made.name) / "ledger.db").close()
    return made


def furnish(folder: Path, devnet: DevnetThread) -> Path:
    (folder / "data").mkdir(mode=0o700)
    copytree(_empty_wallet().name, folder / "data", dirs_exist_ok=True)
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


def launch(
    folder: Path, *more: str, preexec_fn: Callable[[], None] | None = None, module: str | None = None
) -> Process:
    """A daemon that starts, with its stderr. `more`: options of `serve`.

    `preexec_fn` and `module` ask for a fresh interpreter. `module`: what starts the daemon, such as `payagent`.
    """
    if preexec_fn is None and module is None:
        return Forked("serve", "--config", str(folder / "config.toml"), *more)
    return subprocess.Popen(
        [*command(folder, module=module or "payagent"), *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


def start(
    folder: Path, preexec_fn: Callable[[], None] | None = None, module: str | None = None
) -> tuple[Process, Path]:
    """A running daemon and its socket; it has announced itself on stderr."""
    process, _, path = announced_at(folder, preexec_fn=preexec_fn, module=module)
    return process, Path(path)


def announced(folder: Path, module: str | None = None) -> tuple[Process, int, Path]:
    """As above, with its port."""
    process, url, path = announced_at(folder, module=module)
    return process, int(url.rpartition(":")[2]), Path(path)


def announced_at(folder: Path, *more: str, **how: Any) -> tuple[Process, str, str]:
    """As above, with the URL of its port. `more` and `how` are as for `launch`."""
    process = launch(folder, *more, **how)
    assert process.stderr is not None
    line = ""
    for line in process.stderr:
        if found := re.fullmatch(r"payagent serves devnet on (\S+) and (.+)\n", line):
            return process, found[1], found[2]
    process.stderr.close()
    raise AssertionError(f"the daemon ended with {process.wait(60)}: {line}")


def stop(process: Process) -> tuple[int, str]:
    """Its exit code, and its output since it announced itself."""
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    with process.stderr as said:
        talk = said.read()  # not communicate(), which misses what was read ahead with the announcement
    return process.wait(60), talk


def log_of_a_run(folder: Path, preexec_fn: Callable[[], None] | None = None) -> list[str]:
    """Everything a daemon writes from start to stop, in lines."""
    process = launch(folder, preexec_fn=preexec_fn)
    lines = []
    assert process.stderr is not None
    with process.stderr as said:
        for line in said:
            lines.append(line)
            if line.startswith("payagent serves "):
                process.terminate()
    assert process.wait(60) == 0, lines
    return lines


def refused(folder: Path, *more: str) -> tuple[int, str]:
    """The exit code of a daemon that does not start, and its output. `more`: options of `serve`."""
    process = launch(folder, *more)
    _, talk = process.communicate()
    return process.wait(), talk


def health(family: int, address: object, path: str = "/healthz") -> bytes:
    with socket.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(address)  # type: ignore[arg-type]
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        with client.makefile("rb") as answer:
            return answer.read()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]
