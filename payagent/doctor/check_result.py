"""The result of one check, the ledger opened for checks, and the wallet's address."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass

from payagent.core.problems import Refused
from payagent.settings.loading import store_password
from payagent.settings.paths import KEYSTORE_FILE, LEDGER_FILE
from payagent.settings.schema import Settings
from payagent.store.db.engine import read_fleet_store
from payagent.store.db.opening import require_ledger
from payagent.store.db.readers import Readers
from payagent.store.db.unit import Connection
from payagent.wallet.keystore import Hsm, read_header


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check. `problem` is None when it passed; `detail` says what was found.

    `is_warning`: the daemon works as it is, but could be safer.
    """

    name: str
    detail: str
    problem: Refused | None = None
    is_warning: bool = False

    @property
    def fix(self) -> str | None:
        """What to do; None when the check passed."""
        return None if self.problem is None else self.problem.problem.fix


def finding(name: str, check: Callable[[], str]) -> CheckResult:
    """Run a check. A refusal that it raises becomes the result."""
    try:
        return CheckResult(name, check())
    except Refused as refused:
        return CheckResult(name, refused.detail, refused)


def own_address(settings: Settings) -> str | None:
    """The keystore's address; None when it cannot be read, which has a check of its own."""
    try:
        return read_header(settings.data_dir / KEYSTORE_FILE).address
    except Refused:
        return None


def own_hsm(settings: Settings) -> Hsm | None:
    """Where the wallet's keys are in an HSM. None as `own_address`, or if they are not."""
    with suppress(Refused):
        return read_header(settings.data_dir / KEYSTORE_FILE).hsm
    return None


@contextmanager
def opened(settings: Settings) -> Iterator[Connection]:
    """A read-only connection. Raises `ledger_missing`, `ledger_newer` or `store_failed`."""
    path, url = settings.data_dir / LEDGER_FILE, settings.store.url
    if url is None:
        require_ledger(path)
    try:
        readers = (
            Readers(path) if url is None else read_fleet_store(url, settings.data_dir, store_password(settings))
        )
        with closing(readers.conn) as conn:
            yield conn
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001  whatever the database raises: only the store imports its library
        raise Refused("store_failed", f"{url or path} cannot be read: {error}") from None
