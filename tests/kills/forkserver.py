"""The fork server: a process that has imported the daemon once and forks a real one for every start.

A fork takes milliseconds where a cold start takes a second, so hundreds of kills fit into a test run. Each daemon
is still a real process. Orders come as JSON lines on stdin, news goes as JSON lines to stdout:

  in    {"order", "config", "log", "kill_at": [point, count] | null, "variant": name | null, "armed": path | null}
  out   {"pid", "order"}  {"pid", "ready": {...}}  {"pid", "killing_at": point}  {"pid", "failed": why}
        {"pid", "exit": status}

A daemon with `kill_at` sends itself SIGKILL, on the writer's thread, when a commit point is reached for the
count-th time. With `armed` it does so at the point that this file names, and "after voucher" is then a point too.
`variant` names a daemon with a seeded bug (variants.py), for the controls.
Never forks while it has a second thread: a lock that another thread holds would stay locked in the child.
"""

import gc
import json
import mmap
import os
import selectors
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from variants import VARIANTS, tell_vouchers

from payagent.core.network import NETWORKS
from payagent.daemon.serve import serve
from payagent.log import Redactor, configure_logging
from payagent.settings.loading import load_settings
from payagent.wallet.keys import derive, seed_from_words
from payagent.wallet.new_keystore import new_words

Order = dict[str, Any]


def tell(**news: object) -> None:
    """One write of less than PIPE_BUF bytes: lines of several processes do not mix."""
    os.write(sys.stdout.fileno(), (json.dumps(news) + "\n").encode())


def main() -> None:
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    # also what the daemon imports only when it opens its wallet
    derive(seed_from_words(new_words(os.urandom)), NETWORKS["devnet"])
    gc.collect()
    gc.freeze()
    children: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
        selector.register(woken, selectors.EVENT_READ)
        rest = b""
        while True:
            for key, _ in selector.select():
                chunk = os.read(key.fd, 65_536)
                if key.fd == woken:
                    reap(children)
                    continue
                if not chunk:
                    end_all(children)
                    return
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    start(json.loads(line), children)


def start(order: Order, children: set[int]) -> None:
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    if threads != 1:
        raise RuntimeError(f"the fork server has {threads} threads")
    pid = os.fork()
    if pid == 0:
        become_daemon(order)
    children.add(pid)


def reap(children: set[int]) -> None:
    for pid in tuple(children):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children.discard(pid)
            tell(pid=pid, exit=os.waitstatus_to_exitcode(status))


def end_all(children: set[int]) -> None:
    """The client is gone: end all children."""
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def become_daemon(order: Order) -> None:
    """In the child: run the daemon to its end, and nothing else of the fork server."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(sys.stdin.fileno())
        tell(order=order["order"], pid=os.getpid())
        with Path(order["log"]).open("a", buffering=1) as log:
            os.dup2(log.fileno(), sys.stderr.fileno())
            run(order)
        status = 0
    except BaseException as error:  # noqa: BLE001  reported to the client
        tell(pid=os.getpid(), failed=repr(error)[:500])
    finally:
        os._exit(status)


def run(order: Order) -> None:
    redactor = Redactor()
    configure_logging(sys.stderr, redactor)
    config = Path(order["config"])
    settings = load_settings(config, {})
    if order["variant"] is not None:
        VARIANTS[order["variant"]](settings)
    checkpoint = killer(order["kill_at"])
    if order["armed"] is not None:
        checkpoint = armed_killer(Path(order["armed"]))
        tell_vouchers(checkpoint)
    serve(
        settings,
        config=config,
        environ={},
        can_ask=False,
        announce=lambda where: tell(pid=os.getpid(), ready=dict(where)),
        redactor=redactor,
        checkpoint=checkpoint,
    )


def killer(kill_at: tuple[str, int] | None) -> Callable[[str], None]:
    """The checkpoint that ends this process when it is due."""
    wanted, left = kill_at or ("", 0)

    def checkpoint(point: str) -> None:
        nonlocal left
        if point == wanted:
            left -= 1
            if left == 0:
                die(point)

    return checkpoint


def armed_killer(path: Path) -> Callable[[str], None]:
    """The checkpoint that ends this process at the point that a file names, of which it is emptied then.

    The file is mapped before the daemon fences itself off from it.
    """
    with path.open("r+b") as file:
        armed = mmap.mmap(file.fileno(), 0)

    def checkpoint(point: str) -> None:
        if armed[:].rstrip(b"\0").decode() == point:
            armed[:] = bytes(len(armed))
            die(point)

    return checkpoint


def die(point: str) -> None:
    tell(pid=os.getpid(), killing_at=point)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
