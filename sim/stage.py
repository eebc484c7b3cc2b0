"""The setup of many runs: a folder, a template ledger, log capture and garbage collection.

Never: lets one run leave anything for the next.
"""

import gc
import logging
import shutil
import sys
import tempfile
from pathlib import Path

import structlog
from structlog.typing import EventDict, WrappedLogger

from payagent.store.db.committer import Committer, Job
from payagent.store.db.unit import Unit
from payagent.store.rows import apps
from payagent.store.rows import writes as records
from sim.fixtures import NETWORK, START_MS, account
from sim.process import SimProcess
from sim.trace import Trace
from sim.virtual_loop import OWNER
from sim.world import World


def make_template(folder: Path) -> Path:
    """Make an empty ledger with its wallet and one app, the start of each run."""
    path = folder / "template.db"
    committer = Committer(path)

    def job(unit: Unit) -> None:
        records.put_meta(unit, "network", NETWORK.name)
        records.put_meta(unit, "address", account().address.text)
        apps.add_with_token(unit, "app_test", "test", "0" * 64, ["pay", "read", "operate", "approve"], START_MS)

    committer.commit([Job("template", job, Unit(committer.conn))])
    committer.close()
    return path


class SimStage:
    """A folder, in memory if possible, with a template, for any number of runs in sequence.

    Garbage is collected only between runs. During a run, collected objects (such as a stream of a dead task) would
    finish at a time that depends on more than the seed. Objects from before the first run are excluded.
    """

    def __init__(self, world: type[World] = World) -> None:
        self._make = world
        shared = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
        self._folder = Path(tempfile.mkdtemp(prefix="payagent-sim-", dir=shared if shared.is_dir() else None))
        self._template = make_template(self._folder)
        self._log_before = logging.root.manager.disable, structlog.get_config()
        logging.disable(logging.CRITICAL)
        self._world: World | None = None
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING), processors=[self._capture]
        )
        gc.collect()
        gc.freeze()

    def run(self, seed: int, *, keep_story: bool = False) -> Trace:
        folder = self._folder / "run"
        folder.mkdir()
        gc.disable()
        try:
            self._world = self._make(seed, folder, self._template, keep_story=keep_story)
            return self._world.run()
        finally:
            gc.enable()
            gc.collect()
            shutil.rmtree(folder)

    def _capture(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """Capture a log event of the daemon. A step that failed for an unknown reason is a bug."""
        error = event.get("error")
        if error is None and event.get("exc_info"):
            error = repr(sys.exc_info()[1])
        owner = OWNER.get()
        is_dead = isinstance(owner, SimProcess) and owner.is_over  # ignore what a dead process logs
        if self._world is not None:
            self._world.story.keeps_secrets("the log", repr(event).encode())
        if self._world is not None and error is not None and not is_dead:
            self._world.failed_inside(str(event.get("event")), str(error))
        raise structlog.DropEvent

    def close(self) -> None:
        """Restore the process's logging and garbage collection."""
        disabled, config = self._log_before
        logging.disable(disabled)
        structlog.configure(**config)
        gc.unfreeze()
        shutil.rmtree(self._folder, ignore_errors=True)
