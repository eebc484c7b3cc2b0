"""The demo's parts: a devnet, the daemon as a child process, and a client of both, over real HTTP.

Never: calls a running daemon except over HTTP; leaves a process or a file behind.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import httpx

from payagent.agent.base.ports import Ports, SystemClock, SystemRandomness
from payagent.chain.open import KINDS, NAMED_BY_URL, chosen
from payagent.devnet.server import DevnetThread
from payagent.init import Choices, HsmChoices, Made, initialise
from payagent.settings.schema import ProviderSettings

Json = dict[str, Any]
Progress = Callable[[str], None]
Waiting = Callable[[], AbstractContextManager[Progress]]

PATIENCE_S = 60.0
FIRST_START_S = 300.0
"""A first start also compiles the modules, which takes minutes on a busy machine."""
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
_BUSY = "The machine may be busy. Run the demo again when it is not."
POLL_S = 0.05
STOP_S = 10.0
BLOCK_TIME_S = 1
TOKEN = "6a" * 28 + "64656d6f"
"""A native token: any policy id, and the name "demo" in hex."""

_TOKEN_LIMITS = f"""
# A token is paid only when it has limits of its own.
[[limits.assets]]
asset = "{TOKEN}"
per_payment = "1000"
per_day = "5000"
"""
_TOPUP = """
# The request that buys prepaid balance.
[merchants.t.topup]
path = "/payments/topup"
body = "{}"
"""
_CHILD_VARIABLES = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")


class DemoFailed(Exception):  # noqa: N818  it reports the demo's outcome
    """A step did not have the required result."""


def require(condition: bool, otherwise: str) -> None:
    """Raise `DemoFailed` unless the condition holds."""
    if not condition:
        raise DemoFailed(otherwise)


class Daemon:
    """`payagent serve` as a child process."""

    def __init__(self, config: Path, folder: Path, environ: Mapping[str, str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._config = config
        self._log = folder / "daemon.log"
        self._environ = child_environ(folder, environ)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        listen = self.url.removeprefix("http://")
        command = [sys.executable, "-m", "payagent", "serve", "--config", str(self._config), "--listen", listen]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  runs this program itself
                command, env=self._environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> int:
        """Send SIGKILL, so that the process runs no more code. Returns its process id."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None
        return process.pid

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if the process does not end in time."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def require_alive(self) -> None:
        code = self._running().poll()
        require(code is None, f"the daemon ended with exit code {code}")

    def last_lines(self) -> str:
        """The last lines of its log."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(text.splitlines()[-8:])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DemoFailed("the daemon is not running")
        return self._process


@dataclass(frozen=True, slots=True)
class Stage:
    """The running parts, and calls to each of them. `addresses`: of the wallet's accounts."""

    devnet: DevnetThread
    daemon: Daemon
    wallet: Made
    http: httpx.Client
    waiting: Waiting
    addresses: Sequence[str]

    def api(
        self, method: str, path: str, body: Json | None = None, headers: Mapping[str, str] | None = None
    ) -> Any:
        """Call the daemon's API."""
        sent = {"authorization": f"Bearer {self.wallet.token}"} | dict(headers or {})
        return self._answer(method, self.daemon.url, path, body, sent)

    def control(self, path: str, body: Json | None = None) -> Any:
        """Call the devnet's control API."""
        return self._answer("GET" if body is None else "POST", self.devnet.origin, f"/devnet/{path}", body)

    def chain(self, path: str) -> Any:
        """Read the chain through the API that payagent uses too."""
        return self._answer("GET", self.devnet.chain_url, path)

    def set_merchant(self, **settings: object) -> None:
        self._answer("POST", self.devnet.merchant_url, "/merchant/settings", settings)

    def _answer(
        self,
        method: str,
        base_url: str,
        path: str,
        body: Json | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The JSON of an answer. Any error ends the demo."""
        answer = self.http.request(method, base_url + path, json=body, headers=headers)
        require(answer.is_success, f"{method} {path} was answered with {answer.status_code}: {answer.text[:600]}")
        return answer.json()

    def call(self, body: bytes, headers: Mapping[str, str]) -> httpx.Response:
        """A client's request to the merchant's /chat."""
        sent = {"content-type": "application/json", "x-partner": "demo"} | dict(headers)
        return self.http.post(f"{self.devnet.merchant_url}/chat", content=body, headers=sent)

    def through_proxy(self, body: bytes, path: str = "/chat") -> httpx.Response:
        """The same request, or one to another path, with the daemon's proxy as the base URL."""
        sent = {"content-type": "application/json", "x-payagent-token": self.wallet.token}
        return self.http.post(f"{self.daemon.url}/proxy/t{path}", content=body, headers=sent)

    def until(self, awaited: str, reached: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Wait until a condition holds, and show the waiting."""
        started_s = time.monotonic()
        with self.waiting() as progress:
            while not reached():
                waited_s = time.monotonic() - started_s
                require(waited_s < patience_s, f"timed out after {patience_s:.0f} s: {awaited}. {_BUSY}")
                progress(f"   waiting: {awaited} ({waited_s:.0f} s)")
                time.sleep(POLL_S)

    def start_daemon(self) -> None:
        """Start the daemon, and wait until it can pay."""
        self.daemon.start()
        self.until("the daemon is ready", self._is_ready, FIRST_START_S)

    def _is_ready(self) -> bool:
        self.daemon.require_alive()
        try:
            return self.http.get(f"{self.daemon.url}/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False


@contextmanager
def stage(
    waiting: Waiting, environ: Mapping[str, str], provider: str | None = None, *, in_hsm: bool = False
) -> Iterator[Stage]:
    """Start everything, and stop everything however the block ends."""
    with (
        stopped_by_signals(),
        TemporaryDirectory(prefix="payagent-demo-") as name,
        DevnetThread(block_time_s=BLOCK_TIME_S) as devnet,
        httpx.Client(trust_env=False, timeout=PATIENCE_S) as http,
    ):
        folder = Path(name)
        wallet = make_wallet(folder, devnet, provider, in_hsm=in_hsm)
        daemon = Daemon(wallet.config, folder, environ)
        try:
            yield Stage(devnet, daemon, wallet, http, waiting, [wallet.address])
        except httpx.TimeoutException:
            raise DemoFailed(f"no answer after {PATIENCE_S:.0f} s. {_BUSY}") from None
        except DemoFailed as failed:
            raise DemoFailed(f"{failed}\nThe daemon's last log lines:\n{daemon.last_lines()}") from None
        finally:
            daemon.stop()


def make_wallet(folder: Path, devnet: DevnetThread, provider: str | None, *, in_hsm: bool = False) -> Made:
    """Make a wallet as `payagent init` does, and add token limits and a top-up request to its config.

    It reads the devnet by this kind of chain provider. `in_hsm`: its key is in a token of SoftHSM.
    """
    environ = {"HOME": str(folder), "SOFTHSM2_CONF": str(folder / "softhsm2.conf")}
    passphrase_file = folder / "passphrase"
    passphrase = secrets.token_urlsafe(24)
    passphrase_file.touch(mode=0o600)
    passphrase_file.write_text(passphrase)
    choices = Choices(
        network="devnet",
        providers=(served_by(devnet, provider),),
        config=folder / "config.toml",
        data_dir=folder / "data",
        merchants={"t": devnet.merchant_url},
        partners={"t": "demo"},
        passphrase=passphrase,
        passphrase_file=None if in_hsm else passphrase_file,
        hsm=_soft_hsm(folder, environ, passphrase, passphrase_file) if in_hsm else None,
    )
    ports = Ports(SystemClock(), SystemRandomness())
    made = initialise(choices, environ, ports, show_words=None, randomness=os.urandom)
    with made.config.open("a") as config:
        config.write(_TOPUP + _TOKEN_LIMITS)
    return made


def _soft_hsm(folder: Path, environ: Mapping[str, str], pin: str, pin_file: Path) -> HsmChoices:
    """Make a token of SoftHSM in the folder. Raises `DemoFailed`."""
    require(SOFTHSM.exists(), f"{SOFTHSM} is missing. Install SoftHSM2 (Debian's package softhsm2)")
    (folder / "tokens").mkdir()
    Path(environ["SOFTHSM2_CONF"]).write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    command = ("softhsm2-util", "--init-token", "--free", "--label", "payagent", "--so-pin", pin, "--pin", pin)
    subprocess.run(command, env=os.environ | environ, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    uri = f"pkcs11:token=payagent;object=payagent-0?module-path={SOFTHSM}"
    return HsmChoices([uri], pin, pin_file, generate=True)


def served_by(devnet: DevnetThread, kind: str | None) -> ProviderSettings:
    """The devnet as this kind of provider: the kind's URLs on a devnet, at the origin of this one.

    Raises `DemoFailed`.
    """
    require(kind is None or kind in KINDS, f"--provider: write one of {', '.join(KINDS)}")
    usual = chosen(kind or NAMED_BY_URL, "devnet")
    base_url, index_url = (url and devnet.origin + urlsplit(url).path for url in (usual.base_url, usual.index_url))
    return usual.model_copy(update={"base_url": base_url, "index_url": index_url})


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the demo as Ctrl-C does, so that the daemon is stopped too."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def child_environ(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a payagent of the demo: no setting of the caller's reaches it."""
    return {name: environ[name] for name in _CHILD_VARIABLES if name in environ} | {"HOME": str(folder)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
